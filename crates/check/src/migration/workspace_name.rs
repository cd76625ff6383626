//! The workspace's name that a Lua function puts together: `"code-" .. user.sub .. ".svc"`.
//!
//! Each part is followed to its claim: through variables that are set once, to a table that
//! the function decodes. A part that is not understood makes the whole name not understood,
//! because a wrong template sends users to each other's workspaces.

use std::collections::BTreeSet;

use kube_coders_identity::{HostTemplate, Template};

use super::lua_tokens::{LuaToken, tokens};

/// The port of code-server's service in the original's charts.
pub(super) const PORT: &str = "8443";

/// How many variables are followed to a claim.
const MAX_STEPS: usize = 8;

/// A name that a function makes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkspaceName {
    /// The host, with claims in braces.
    pub(super) host: String,
    pub(super) port: Option<String>,
    /// The claims, in the order of the host.
    pub(super) claims: Vec<String>,
}

/// A part of a name.
#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Claim(String),
}

/// The name that a function makes, `None` if it makes none, or why it is not understood.
pub(super) fn workspace_name(function: &str) -> Result<Option<WorkspaceName>, String> {
    let tokens = tokens(function);
    let reader = NameReader { tokens: &tokens };
    let (mut names, mut reasons) = (BTreeSet::new(), Vec::new());
    for (at, is_format) in reader.expressions() {
        match reader.name_at(at, is_format) {
            Some(Ok(name)) => drop(names.insert(name)),
            Some(Err(reason)) => reasons.push(reason),
            None => {}
        }
    }
    if let Some(reason) = reasons.into_iter().next() {
        return Err(reason);
    }
    let mut names = names.into_iter();
    match (names.next(), names.next()) {
        (Some(mut name), None) => {
            name.port = name.port.take().or_else(|| reader.port());
            Ok(Some(name))
        }
        (Some(one), Some(other)) => {
            Err(format!("it puts more than one name together: {} and {}", one.host, other.host))
        }
        (None, _) => Ok(None),
    }
}

struct NameReader<'l> {
    tokens: &'l [LuaToken<'l>],
}

impl<'l> NameReader<'l> {
    fn at(&self, at: usize) -> Option<LuaToken<'l>> {
        self.tokens.get(at).copied()
    }

    fn is_symbol(&self, at: usize, symbol: char) -> bool {
        self.at(at) == Some(LuaToken::Symbol(symbol))
    }

    /// The starts of all expressions that put texts together, and whether one is a call of
    /// string.format, which starts at its text.
    fn expressions(&self) -> Vec<(usize, bool)> {
        let mut starts = Vec::new();
        for at in 0..self.tokens.len() {
            let is_call =
                matches!(self.at(at), Some(LuaToken::Name("format"))) && self.is_symbol(at + 1, '(');
            if is_call && matches!(self.at(at + 2), Some(LuaToken::Text(_))) {
                starts.push((at + 2, true));
            }
            let joins_before = at > 0 && self.at(at - 1) == Some(LuaToken::Join);
            let is_start = matches!(self.at(at), Some(LuaToken::Text(_))) && !joins_before;
            if is_start && self.at(at + 1) == Some(LuaToken::Join) {
                starts.push((at, false));
            }
        }
        starts
    }

    /// The name that an expression makes; `None` if it makes something else, such as a line
    /// for the log.
    fn name_at(&self, at: usize, is_format: bool) -> Option<Result<WorkspaceName, String>> {
        let parts = if is_format { self.format_parts(at) } else { self.joined_parts(at) };
        let parts = match parts {
            Ok(parts) => parts,
            // Only an expression whose first text begins a host is about a name.
            Err(reason) => {
                let Some(LuaToken::Text(first)) = self.at(at) else { return None };
                let start = first.split('%').next().unwrap_or_default();
                let begins_a_host =
                    !start.is_empty() && HostTemplate::parse(&format!("{start}{{sub}}")).is_ok();
                return begins_a_host.then_some(Err(reason));
            }
        };
        let is_hostlike = parts.iter().all(|part| match part {
            Part::Text(text) => {
                text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte))
            }
            Part::Claim(_) => true,
        });
        let mut text = String::new();
        let mut claims = Vec::new();
        for part in parts {
            match part {
                Part::Text(part) => text.push_str(&part),
                Part::Claim(claim) => {
                    text.push_str(&format!("{{{claim}}}"));
                    claims.push(claim);
                }
            }
        }
        if claims.is_empty() {
            return None;
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port.to_owned())),
            None => (text, None),
        };
        let whole = format!("http://{host}:{}", port.as_deref().unwrap_or(PORT));
        match Template::parse(&whole) {
            Ok(_) => Some(Ok(WorkspaceName { host, port, claims })),
            Err(error) => is_hostlike.then(|| Err(format!("{host} is no template: {error}"))),
        }
    }

    /// The parts of `"…" .. a.b .. "…"`.
    fn joined_parts(&self, mut at: usize) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        loop {
            let part;
            (part, at) = self.operand(at, MAX_STEPS)?;
            parts.push(part);
            match self.at(at) {
                Some(LuaToken::Join) => at += 1,
                Some(LuaToken::Name("or" | "and")) => {
                    return Err("`and` or `or` chooses between two values of the name".to_owned());
                }
                _ => return Ok(parts),
            }
        }
    }

    /// The parts of `string.format("code-%s", a.b)`.
    fn format_parts(&self, at: usize) -> Result<Vec<Part>, String> {
        let Some(LuaToken::Text(format)) = self.at(at) else { return Ok(Vec::new()) };
        let mut pieces = format.split("%s");
        let mut parts = vec![Part::Text(pieces.next().unwrap_or_default().to_owned())];
        let mut at = at + 1;
        for piece in pieces {
            if !self.is_symbol(at, ',') {
                return Err("string.format has fewer values than its text asks for".to_owned());
            }
            let part;
            (part, at) = self.operand(at + 1, MAX_STEPS)?;
            parts.extend([part, Part::Text(piece.to_owned())]);
        }
        match self.is_symbol(at, ')') && !format.replace("%s", "").contains('%') {
            true => Ok(parts),
            false => Err("string.format is not understood but with `%s`".to_owned()),
        }
    }

    /// One part of a name, and where it ends.
    fn operand(&self, at: usize, steps: usize) -> Result<(Part, usize), String> {
        match self.at(at) {
            Some(LuaToken::Text(text) | LuaToken::Number(text)) => Ok((Part::Text(text.to_owned()), at + 1)),
            Some(LuaToken::Name("tostring")) if self.is_symbol(at + 1, '(') => {
                self.in_parentheses(at + 1, steps)
            }
            Some(LuaToken::Symbol('(')) => self.in_parentheses(at, steps),
            Some(LuaToken::Name(variable)) => {
                let (fields, end) = self.fields(at + 1)?;
                if self.is_symbol(end, '(') || self.is_symbol(end, ':') {
                    let name = fields.last().copied().unwrap_or(variable);
                    return Err(format!("the function `{name}` changes a part of the name"));
                }
                Ok((self.value(variable, &fields, steps)?, end))
            }
            _ => Err("a part of the name is neither a text nor a claim".to_owned()),
        }
    }

    fn in_parentheses(&self, at: usize, steps: usize) -> Result<(Part, usize), String> {
        let (part, end) = self.operand(at + 1, steps)?;
        match self.is_symbol(end, ')') {
            true => Ok((part, end + 1)),
            false => Err("a part of the name is calculated".to_owned()),
        }
    }

    /// The fields after a variable: `.a`, `["a"]`.
    fn fields(&self, mut at: usize) -> Result<(Vec<&'l str>, usize), String> {
        let mut fields = Vec::new();
        loop {
            match (self.at(at), self.at(at + 1)) {
                (Some(LuaToken::Symbol('.')), Some(LuaToken::Name(field))) => {
                    fields.push(field);
                    at += 2;
                }
                (Some(LuaToken::Symbol('[')), Some(LuaToken::Text(field))) if self.is_symbol(at + 2, ']') => {
                    fields.push(field);
                    at += 3;
                }
                (Some(LuaToken::Symbol('[')), _) => {
                    return Err("a field of the name is calculated".to_owned());
                }
                _ => return Ok((fields, at)),
            }
        }
    }

    /// What a variable's field is: a text, or a claim of the table that was decoded.
    fn value(&self, variable: &str, fields: &[&str], steps: usize) -> Result<Part, String> {
        let Some(steps) = steps.checked_sub(1) else {
            return Err(format!("the variable `{variable}` is set from too many others"));
        };
        let mut start = self.only_value_of(variable)?;
        // `user and user.sub` is the claim if there is one.
        if let (Some(LuaToken::Name(_)), Some(LuaToken::Name("and"))) = (self.at(start), self.at(start + 1)) {
            start += 2;
        }
        if self.is_decoding(start) {
            if self.has_field_set(variable) {
                return Err(format!("a field of the variable `{variable}` is changed"));
            }
            return match fields {
                [] => Err(format!("the variable `{variable}` is a whole table")),
                fields => Ok(Part::Claim(fields.join("."))),
            };
        }
        let (part, end) = self.operand_with(start, fields, steps)?;
        match self.at(end) {
            Some(LuaToken::Join) => Err(format!("the variable `{variable}` is put together itself")),
            Some(LuaToken::Name("or" | "and")) => {
                Err(format!("`and` or `or` chooses between two values of `{variable}`"))
            }
            _ => Ok(part),
        }
    }

    /// The value of an expression, and then of its fields.
    fn operand_with(&self, at: usize, fields: &[&str], steps: usize) -> Result<(Part, usize), String> {
        if fields.is_empty() {
            return self.operand(at, steps);
        }
        let Some(LuaToken::Name(variable)) = self.at(at) else {
            return Err("a part of the name is a field of something else than a variable".to_owned());
        };
        let (mut all, end) = self.fields(at + 1)?;
        if self.is_symbol(end, '(') || self.is_symbol(end, ':') {
            return Err(format!(
                "the function `{}` makes a part of the name",
                all.last().unwrap_or(&variable)
            ));
        }
        all.extend(fields);
        Ok((self.value(variable, &all, steps)?, end))
    }

    /// The places of a variable's name, but for fields of that name.
    fn places_of(&self, variable: &str) -> Vec<usize> {
        let mut braces = 0_usize;
        let mut places = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| self.at(at));
            match token {
                LuaToken::Symbol('{') => braces += 1,
                LuaToken::Symbol('}') => braces = braces.saturating_sub(1),
                _ => {}
            }
            let is_field = match before {
                Some(LuaToken::Symbol('.' | ':')) => true,
                // A name in a table: `{ sub = x, name = y }`.
                Some(LuaToken::Symbol('{' | ',' | ';')) => braces > 0 && self.is_symbol(at + 1, '='),
                _ => false,
            };
            if *token == LuaToken::Name(variable) && !is_field {
                places.push(at);
            }
        }
        places
    }

    /// Whether a field of a variable is set: `user.sub = …`.
    fn has_field_set(&self, variable: &str) -> bool {
        self.places_of(variable).into_iter().any(|at| match self.fields(at + 1) {
            Ok((fields, end)) => !fields.is_empty() && self.is_set_at(end),
            // A calculated field may be any.
            Err(_) => true,
        })
    }

    fn is_set_at(&self, at: usize) -> bool {
        self.is_symbol(at, '=') && !self.is_symbol(at + 1, '=')
    }

    /// Whether a function or a loop has a variable of this name of its own.
    fn is_parameter(&self, variable: &str) -> bool {
        let is_list = |from: usize, end: LuaToken<'_>| {
            let rest = self.tokens[from..].iter();
            let mut list = rest.take_while(|token| {
                matches!(token, LuaToken::Name(name) if *name != "in") || **token == LuaToken::Symbol(',')
            });
            let count = list.clone().count();
            self.at(from + count) == Some(end) && list.any(|token| *token == LuaToken::Name(variable))
        };
        (0..self.tokens.len()).any(|at| match self.at(at) {
            Some(LuaToken::Name("function")) => {
                let open = (at..self.tokens.len()).find(|at| self.is_symbol(*at, '('));
                open.is_some_and(|open| is_list(open + 1, LuaToken::Symbol(')')))
            }
            Some(LuaToken::Name("for")) => is_list(at + 1, LuaToken::Name("in")),
            _ => false,
        })
    }

    /// Where the value of a variable begins that is set in one place only.
    fn only_value_of(&self, variable: &str) -> Result<usize, String> {
        if self.is_parameter(variable) {
            return Err(format!("it is not known what the variable `{variable}` is"));
        }
        let mut values = Vec::new();
        for at in self.places_of(variable) {
            // `local ok, user = pcall(…)`: the value is that of all names together.
            let mut end = at + 1;
            while self.is_symbol(end, ',') && matches!(self.at(end + 1), Some(LuaToken::Name(_))) {
                end += 2;
            }
            if self.is_set_at(end) {
                values.push(end + 1);
            }
        }
        match values[..] {
            [value] => Ok(value),
            [] => Err(format!("it is not known what the variable `{variable}` is")),
            _ => Err(format!("the variable `{variable}` is set more than once")),
        }
    }

    /// Whether an expression decodes a table: `core.json.decode(…)`, or `pcall` of that.
    fn is_decoding(&self, at: usize) -> bool {
        let called = |at: usize| -> Option<(&str, usize)> {
            let Some(LuaToken::Name(first)) = self.at(at) else { return None };
            let (fields, end) = self.fields(at + 1).ok()?;
            Some((fields.last().copied().unwrap_or(first), end))
        };
        match called(at) {
            Some(("pcall", end)) if self.is_symbol(end, '(') => {
                called(end + 1).is_some_and(|(name, end)| is_decoder(name) && self.is_symbol(end, ','))
            }
            Some((name, end)) => is_decoder(name) && self.is_symbol(end, '('),
            None => false,
        }
    }

    /// The number in `port = 8080`, or in a text such as `":8080"`.
    fn port(&self) -> Option<String> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mut ports = BTreeSet::new();
        for at in 0..self.tokens.len() {
            match (self.at(at), self.at(at + 1), self.at(at + 2)) {
                (Some(LuaToken::Name("port")), Some(LuaToken::Symbol('=')), Some(LuaToken::Number(port)))
                    if is_number(port) =>
                {
                    ports.insert(port);
                }
                (Some(LuaToken::Text(text)), ..) => {
                    ports.extend(text.strip_prefix(':').filter(|port| is_number(port)));
                }
                _ => {}
            }
        }
        match ports.len() {
            1 => ports.first().map(|port| (*port).to_owned()),
            _ => None,
        }
    }
}

/// `decode` of cjson and of APISIX's own, and names that say the same.
fn is_decoder(name: &str) -> bool {
    ["decode", "json_decode", "decode_json"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECODED: &str = "local info = core.json.decode(ngx.decode_base64(userinfo)) ";

    #[track_caller]
    fn check(function: &str, host: &str, port: Option<&str>) {
        let found = workspace_name(&format!("{DECODED}{function}"));
        let found = found.map(|name| name.map(|name| (name.host, name.port)));
        assert_eq!(found, Ok(Some((host.to_owned(), port.map(str::to_owned)))), "{function}");
    }

    #[track_caller]
    fn refused(function: &str, reason: &str) {
        assert_eq!(workspace_name(function), Err(reason.to_owned()), "{function}");
    }

    #[test]
    fn a_name_is_followed_to_its_claims() {
        check(
            r#"local h = "code-" .. info.sub .. ".dev.svc" .. ":8443""#,
            "code-{sub}.dev.svc",
            Some("8443"),
        );
        check(
            "local h = 'ws-'..info.preferred_username..'.dev:3000'",
            "ws-{preferred_username}.dev",
            Some("3000"),
        );
        check(
            r#"local name = info.preferred_username local h = "code-" .. name .. ".dev""#,
            "code-{preferred_username}.dev",
            None,
        );
        check(r#"local user = info local s = user["sub"] local h = "code-" .. s"#, "code-{sub}", None);
        check(r#"local s = info and info.sub local h = "code-" .. tostring(s)"#, "code-{sub}", None);
        check(r#"local t = info.team h = "code-" .. (t.name) .. ".dev""#, "code-{team.name}.dev", None);
        check(r#"local h = string.format("code-%s.dev:%s", info.sub, 8080)"#, "code-{sub}.dev", Some("8080"));
        check(r#"log("user: " .. info.sub) local h = "code-" .. info.sub"#, "code-{sub}", None);
        check(
            r#"nodes = {{host = "code-" .. info.sub .. ".svc", port = 8080}}"#,
            "code-{sub}.svc",
            Some("8080"),
        );
        check(r#"local domain = ".dev" local h = "code-" .. info.sub .. domain"#, "code-{sub}.dev", None);
        check("-- \"x-\" .. info.name\nlocal h = \"code-\" .. info.sub", "code-{sub}", None);
        let protected = r#"local ok, u = pcall(cjson.decode, text) local h = "code-" .. u.sub"#;
        assert_eq!(workspace_name(protected).unwrap().unwrap().host, "code-{sub}");
        check(
            r#"local h = "code-" .. info.sub .. "." .. info.team .. ".dev""#,
            "code-{sub}.{team}.dev",
            None,
        );
    }

    #[test]
    fn a_part_that_is_not_understood_is_never_taken_for_a_claim() {
        let host = |part: &str| format!(r#"{DECODED}{part} local h = "code-" .. x .. ".dev""#);
        refused(&host(""), "it is not known what the variable `x` is");
        refused(&host("local x = string.lower(info.sub)"), "the function `lower` changes a part of the name");
        refused(&host("local x = info.sub:gsub('@', '-')"), "the function `sub` changes a part of the name");
        refused(&host("local x = info.sub or 'guest'"), "`and` or `or` chooses between two values of `x`");
        refused(&host("local x = 'a' .. info.sub"), "the variable `x` is put together itself");
        refused(
            &host("local x = info.sub if y then x = info.name end"),
            "the variable `x` is set more than once",
        );
        refused(&host("local x = ngx.var.remote_user"), "it is not known what the variable `ngx` is");
        refused(&host("local x = users[info.sub]"), "a field of the name is calculated");
        refused(&host("local x = info"), "the variable `info` is a whole table");
        refused(&host("local x = get_user()"), "the function `get_user` changes a part of the name");
        refused(&host("local x = x"), "the variable `x` is set from too many others");
        refused(
            &format!(r#"{DECODED} local h = "code-" .. info.sub .. suffix"#),
            "it is not known what the variable `suffix` is",
        );
        refused(
            &format!(r#"{DECODED} local h = "code-" .. info.sub:lower()"#),
            "the function `sub` changes a part of the name",
        );
        refused(
            &format!(r#"{DECODED} local a = "code-" .. info.sub local b = "ws-" .. info.name"#),
            "it puts more than one name together: code-{sub} and ws-{name}",
        );
        refused(
            &format!(r#"{DECODED} info.sub = string.lower(info.sub) local h = "code-" .. info.sub"#),
            "a field of the variable `info` is changed",
        );
        refused(
            &host("local x = info.sub local f = function(y, x) return x end"),
            "it is not known what the variable `x` is",
        );
        refused(
            &host("local x = info.sub for _, x in pairs(info) do end"),
            "it is not known what the variable `x` is",
        );
        refused(&host("local t = { x = info.sub }"), "it is not known what the variable `x` is");
        let two = workspace_name(&format!(r#"{DECODED} local h = "code-" .. info.sub .. "-" .. info.team"#));
        assert!(two.unwrap_err().starts_with("code-{sub}-{team} is no template: "));
        for function in ["", r#"local h = "code-""#, r#"local h = "Code " .. sub"#, "local h = ("] {
            assert_eq!(workspace_name(function), Ok(None), "{function}");
        }
    }
}
