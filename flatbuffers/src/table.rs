//! Reading FlatBuffers tables, every step checked against the payload's bounds.
//!
//! The crate's verifier walks a whole payload before a field is read, and that
//! walk was a quarter of what a call cost; these few kinds of fields are checked
//! where they are read instead. What the verifier accepts reads the same here,
//! which a test holds against the generated code.

use crate::malformed::{MalformedPayload, NameValue};

/// How many entries a list may have. A request line of 32 KiB has no more than
/// half as many arguments; a list of references could claim millions.
const MAX_ENTRIES: usize = 1 << 16;

/// The number of a field in its table, from 0, as in the schema.
pub(crate) type Field = usize;

/// A table somewhere in a payload.
#[derive(Clone, Copy)]
pub(crate) struct PayloadTable<'f> {
    payload: &'f [u8],
    start: usize,
    /// Its own length and the table's, then where each field stands from the
    /// table's start, each two bytes.
    fields: &'f [u8],
}

fn u16_at(payload: &[u8], at: usize) -> Result<u16, MalformedPayload> {
    let bytes =
        payload.get(at..).and_then(<[u8]>::first_chunk).ok_or(MalformedPayload::OutOfBounds { at })?;
    Ok(u16::from_le_bytes(*bytes))
}

fn u32_at(payload: &[u8], at: usize) -> Result<u32, MalformedPayload> {
    let bytes =
        payload.get(at..).and_then(<[u8]>::first_chunk).ok_or(MalformedPayload::OutOfBounds { at })?;
    Ok(u32::from_le_bytes(*bytes))
}

/// Follows a reference, which counts from its own position.
fn referred(payload: &[u8], at: usize) -> Result<usize, MalformedPayload> {
    let forward = usize::try_from(u32_at(payload, at)?).map_err(|_| MalformedPayload::OutOfBounds { at })?;
    at.checked_add(forward).ok_or(MalformedPayload::OutOfBounds { at })
}

impl<'f> PayloadTable<'f> {
    /// The table that the payload is.
    pub(crate) fn root(payload: &'f [u8]) -> Result<Self, MalformedPayload> {
        Self::at(payload, referred(payload, 0)?)
    }

    fn at(payload: &'f [u8], start: usize) -> Result<Self, MalformedPayload> {
        let outside = MalformedPayload::OutOfBounds { at: start };
        // The list of fields is before the table, or after it if this is negative.
        let back = u32_at(payload, start)?.cast_signed();
        let position = i64::try_from(start).ok().and_then(|start| start.checked_sub(i64::from(back)));
        let position = position.and_then(|position| usize::try_from(position).ok()).ok_or(outside)?;
        let length = usize::from(u16_at(payload, position)?);
        let fields =
            payload.get(position..position + length).ok_or(MalformedPayload::OutOfBounds { at: position })?;
        Ok(Self { payload, start, fields })
    }

    /// The position of a field; `None` if the field is missing.
    fn position(&self, field: Field) -> Option<usize> {
        let offset =
            self.fields.get(4 + field * 2..).and_then(<[u8]>::first_chunk).copied().map(u16::from_le_bytes);
        offset.filter(|offset| *offset != 0).map(|offset| self.start + usize::from(offset))
    }

    /// 0 if the field is missing, as for all numbers of the schema.
    pub(crate) fn u8(&self, field: Field) -> Result<u8, MalformedPayload> {
        match self.position(field) {
            Some(at) => self.payload.get(at).copied().ok_or(MalformedPayload::OutOfBounds { at }),
            None => Ok(0),
        }
    }

    pub(crate) fn u16(&self, field: Field) -> Result<u16, MalformedPayload> {
        self.position(field).map_or(Ok(0), |at| u16_at(self.payload, at))
    }

    pub(crate) fn u32(&self, field: Field) -> Result<u32, MalformedPayload> {
        self.position(field).map_or(Ok(0), |at| u32_at(self.payload, at))
    }

    pub(crate) fn bytes(&self, field: Field) -> Result<Option<&'f [u8]>, MalformedPayload> {
        let Some(at) = self.position(field) else { return Ok(None) };
        let start = referred(self.payload, at)?;
        let length = usize::try_from(u32_at(self.payload, start)?).unwrap_or(usize::MAX);
        let bytes = self.payload.get(start + 4..).and_then(|rest| rest.get(..length));
        bytes.map(Some).ok_or(MalformedPayload::OutOfBounds { at: start })
    }

    /// A list of names with values; empty if the field is missing.
    pub(crate) fn entries<E>(
        &self,
        field: Field,
        of: impl Fn(NameValue<'f>) -> E,
    ) -> Result<Vec<E>, MalformedPayload> {
        let Some(at) = self.position(field) else { return Ok(Vec::new()) };
        let start = referred(self.payload, at)?;
        let count = usize::try_from(u32_at(self.payload, start)?).unwrap_or(usize::MAX);
        if count > MAX_ENTRIES {
            return Err(MalformedPayload::TooMany { entries: count });
        }
        let references = start + 4;
        if self.payload.len() < references + count * 4 {
            return Err(MalformedPayload::OutOfBounds { at: start });
        }
        let mut entries = Vec::with_capacity(count);
        for index in 0..count {
            let entry = Self::at(self.payload, referred(self.payload, references + index * 4)?)?;
            entries.push(of((entry.bytes(0)?.unwrap_or_default(), entry.bytes(1)?)));
        }
        Ok(entries)
    }
}
