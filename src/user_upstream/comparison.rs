//! What a rule lists and what an identity has, for `explain`: values are compared byte for
//! byte, and many differences are invisible.

use icu_normalizer::ComposingNormalizer;

use super::trace::{SHOWN_VALUES, quoted};
use kube_coders_identity::claims::Claims;
use kube_coders_identity::policy::{Denied, Policy};

/// What the rule lists, and values of the identity that are nearly equal to one of it.
pub(super) fn comparison_text(policy: &Policy, denied: Denied, claims: &Claims) -> String {
    let (listed, found) = policy.listed(denied, claims);
    if let Denied::OneOf(_) = denied {
        let hit = found.iter().find(|value| listed.contains(value));
        return hit.map(|value| format!(": {}", quoted(value))).unwrap_or_default();
    }
    let shown: Vec<_> = listed.iter().take(SHOWN_VALUES).map(|value| quoted(value)).collect();
    let more = if listed.len() > SHOWN_VALUES { ", …" } else { "" };
    let mut text = format!(": {}{more}", shown.join(", "));
    let near = found.iter().flat_map(|found| listed.iter().map(move |listed| (found, listed)));
    let near = near.filter_map(|(found, listed)| Some((found, listed, difference(found, listed)?)));
    for (found, listed, difference) in near.take(SHOWN_VALUES) {
        text.push_str(&format!("; the identity's {} is not {}: {difference}", quoted(found), quoted(listed)));
    }
    text
}

/// In what two texts differ that many people would call equal.
fn difference(found: &str, listed: &str) -> Option<&'static str> {
    let nfc = ComposingNormalizer::new_nfc();
    let (found, listed) = (nfc.normalize(found), nfc.normalize(listed));
    let last_part = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    if found == listed {
        Some("the same characters in another Unicode form (NFC and NFD)")
    } else if found.trim_matches('/') == listed.trim_matches('/') {
        Some("one has a `/` at its start or end; Keycloak writes it if its mapper gives full group paths")
    } else if found.trim() == listed.trim() {
        Some("one has spaces around it")
    } else if found.to_lowercase() == listed.to_lowercase() {
        Some("upper and lower case differ")
    } else if last_part(&found) == *listed || last_part(&listed) == *found {
        Some(
            "one is the last part of the other's path; Keycloak writes the path if its mapper gives full group paths",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use kube_coders_identity::claims::{Wanted, decode};
    use kube_coders_identity::policy::{ClaimPaths, Rules};

    use super::*;

    fn text(rule: &str, values: &str, claims: &str, denied: Denied) -> String {
        let rules = || serde_json::from_str::<Rules>(&format!("{{\"groups\": {values}}}")).unwrap();
        let (allow, deny) = match rule {
            "allow" => (rules(), Rules::default()),
            _ => (Rules::default(), rules()),
        };
        let policy = Policy::new(allow, deny, ClaimPaths::default()).unwrap();
        let claims = decode(claims.as_bytes(), &Wanted::new(["groups"])).unwrap();
        assert_eq!(policy.decide(&claims), Err(denied));
        comparison_text(&policy, denied, &claims)
    }

    #[test]
    fn values_that_are_nearly_equal_are_pointed_at() {
        for (found, expected) in [
            ("developers", "one has a `/` at its start or end"),
            ("/developers/", "one has a `/` at its start or end"),
            ("/developers ", "one has spaces around it"),
            ("/Developers", "upper and lower case differ"),
        ] {
            let claims = serde_json::json!({"groups": ["/other", found]}).to_string();
            let said = text("allow", r#"["/developers"]"#, &claims, Denied::NoneOf("groups"));
            let start =
                format!(": \"/developers\"; the identity's {found:?} is not \"/developers\": {expected}");
            assert!(said.starts_with(&start), "{said}");
            assert_eq!(said.matches("the identity's").count(), 1, "{said}");
        }
        let said = text("allow", r#"["ops"]"#, r#"{"groups": "/org/ops"}"#, Denied::NoneOf("groups"));
        assert!(said.contains("is the last part of the other's path"), "{said}");
        let composed = "[\"\u{ac1c}\u{bc1c}\"]";
        let claims = "{\"groups\": [\"\u{1100}\u{1162}\u{1107}\u{1161}\u{11af}\"]}";
        let said = text("allow", composed, claims, Denied::NoneOf("groups"));
        assert!(said.ends_with("(NFC and NFD)"), "{said}");
    }

    #[test]
    fn a_rule_that_denies_shows_the_value_and_one_that_admits_all_that_it_lists() {
        let said = text("deny", r#"["/a", "/b"]"#, r#"{"groups": ["/c", "/b"]}"#, Denied::OneOf("groups"));
        assert_eq!(said, ": \"/b\"");
        let said = text("allow", r#"["/a", "/b"]"#, "{}", Denied::NoneOf("groups"));
        assert_eq!(said, ": \"/a\", \"/b\"");
        let many: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        let many = serde_json::to_string(&many).unwrap();
        let said = text("allow", &many, r#"{"groups": []}"#, Denied::NoneOf("groups"));
        assert!(said.ends_with(", …") && said.len() < 100, "{said}");
    }
}
