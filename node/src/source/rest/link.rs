//! The `Link` header (RFC 8288): links in angle brackets, each with parameters, separated by commas that may also stand
//! inside of both.

/// The target of the first link with this relation, as it is written: it may be relative.
pub(super) fn target<'h>(headers: impl IntoIterator<Item = &'h str>, rel: &str) -> Option<String> {
    headers.into_iter().find_map(|header| Links(header).find(rel))
}

/// What is left of a header.
struct Links<'h>(&'h str);

impl<'h> Links<'h> {
    fn find(&mut self, wanted: &str) -> Option<String> {
        loop {
            self.skip(&[',']);
            if self.0.is_empty() {
                return None;
            }
            let Some((target, rest)) = self.0.strip_prefix('<').and_then(|rest| rest.split_once('>')) else {
                // No link: on to the next one, if there is any.
                self.0 = self.0.split_once(',').map_or("", |(_, rest)| rest);
                continue;
            };
            self.0 = rest;
            let (mut rel, mut is_about_another) = (None, false);
            while let Some((name, value)) = self.parameter() {
                match name.to_ascii_lowercase().as_str() {
                    // Of several the first counts.
                    "rel" => drop(rel.get_or_insert(value)),
                    "anchor" => is_about_another = true,
                    _ => {}
                }
            }
            let is_wanted = |rel: &String| rel.split_ascii_whitespace().any(|one| one.eq_ignore_ascii_case(wanted));
            if !is_about_another && rel.as_ref().is_some_and(is_wanted) {
                return Some(target.trim().to_owned());
            }
        }
    }

    /// The next parameter of the link that has begun; its value is empty if it has none.
    fn parameter(&mut self) -> Option<(&'h str, String)> {
        loop {
            self.skip(&[]);
            if self.0.is_empty() || self.0.starts_with(',') {
                return None;
            }
            if let Some(rest) = self.0.strip_prefix(';') {
                self.0 = rest;
                self.skip(&[';']);
            }
            let end = self.0.find([';', ',', '=']).unwrap_or(self.0.len());
            let (name, rest) = self.0.split_at(end);
            self.0 = rest;
            let value = match self.0.strip_prefix('=') {
                Some(rest) => {
                    self.0 = rest;
                    self.value()
                }
                None => String::new(),
            };
            if !name.trim().is_empty() {
                return Some((name.trim(), value));
            }
        }
    }

    /// A value in quotes, or up to the next sign that ends one.
    fn value(&mut self) -> String {
        self.skip(&[]);
        let mut text = String::new();
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find([';', ',']).unwrap_or(self.0.len());
            let (value, rest) = self.0.split_at(end);
            self.0 = rest;
            return value.trim().to_owned();
        };
        let mut letters = quoted.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => text.extend(letters.next()),
                '"' => break,
                other => text.push(other),
            }
        }
        self.0 = letters.as_str();
        // Nothing may follow but what ends the parameter.
        let end = self.0.find([';', ',']).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
        text
    }

    fn skip(&mut self, also: &[char]) {
        self.0 = self
            .0
            .trim_start_matches(|letter: char| letter.is_ascii_whitespace() || also.contains(&letter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_by_its_relation() {
        for (headers, expected) in [
            (&["<https://h/a?page=2>; rel=\"next\""][..], Some("https://h/a?page=2")),
            (&["</a?page=2>; rel=next"], Some("/a?page=2")),
            (&["</a>; rel=\"prev\", </b>; rel=\"next\""], Some("/b")),
            (&["</a>; rel=prev,</b>;rel=next"], Some("/b")),
            (&["</a>; rel=first", "</b>; rel=\"last next\""], Some("/b")),
            (&["</a>; rel=\"NEXT\""], Some("/a")),
            (&["</a>; REL = \"next\""], Some("/a")),
            (&["</a>;; rel=next"], Some("/a")),
            // Commas and semicolons in targets and in quotes.
            (
                &["</a?ids=1,2;3>; title=\"x, </no>; rel=\\\"next\\\"\"; rel=prev, </b>; rel=next"],
                Some("/b"),
            ),
            (&["</a>; title=\"open, rel=next"], None),
            // The first `rel` counts.
            (&["</a>; rel=prev; rel=next"], None),
            // A link of something else.
            (&["</a>; rel=next; anchor=\"#foo\", </b>; rel=next"], Some("/b")),
            (&["</a>; nextrel=next; rel"], None),
            (&["nonsense, </b>; rel=next"], Some("/b")),
            (&["</a; rel=next"], None),
            (&["", ",,,"], None),
            (&["<>; rel=next"], Some("")),
            (&[], None),
        ] {
            assert_eq!(
                target(headers.iter().copied(), "next").as_deref(),
                expected,
                "{headers:?}"
            );
        }
        assert_eq!(target(["</a>; rel=\"more\""], "more").as_deref(), Some("/a"));
    }

    #[test]
    fn no_text_makes_it_panic_or_hang() {
        let signs = ['<', '>', ';', ',', '=', '"', '\\', 'r', ' ', 'ü'];
        // All texts of five of these signs.
        for number in 0..signs.len().pow(5) {
            let text: String = (0..5)
                .map(|place| signs[number / signs.len().pow(place) % signs.len()])
                .collect();
            drop(target(
                [text.as_str(), &format!("</a>; {text}"), &format!("</a>; rel={text}")],
                "next",
            ));
        }
    }
}
