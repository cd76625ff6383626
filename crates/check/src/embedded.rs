//! Files that are written in texts of other documents: in a ConfigMap, or in values for a
//! Helm chart.

use super::document::{Document, MAX_VALUES};
use super::objects::is_gateway_file;

/// Puts after each document those that its texts are. All together have no more values than
/// a file may have.
pub(super) fn with_embedded(documents: Vec<Document<'_>>) -> Vec<Document<'_>> {
    let mut left = MAX_VALUES;
    let mut all = Vec::new();
    for document in documents {
        let mut found = Vec::new();
        for (_, text) in document.spot().texts() {
            if !text.text().is_some_and(|text| text.contains('\n') || text.starts_with('{')) {
                continue;
            }
            let inner = document.within(&text, left);
            left -= inner.iter().map(Document::count).sum::<usize>().min(left);
            let is_file = inner.iter().any(|inner| is_gateway_file(&inner.spot()));
            if is_file {
                text.set_examined();
                found.extend(inner);
            }
        }
        all.push(document);
        all.extend(found);
    }
    all
}
