//! Numbers in sentences for people.

/// `1` as `1 row`, `2` as `2 rows`.
pub fn counted(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        for (number, text) in [(0, "0 rows"), (1, "1 row"), (2, "2 rows")] {
            assert_eq!(counted(number, "row"), text);
        }
    }
}
