//! PostgreSQL's binary `numeric`: groups of four decimal digits, most significant first.
//!
//! ```text
//! groups i16 | weight i16 (of the first group, in powers of 10000) | sign u16 | scale u16 | groups * i16
//! ```
//!
//! Ten bytes may stand for 131,072 digits, so whoever takes the text of one asks for its length first.

/// A value, looked at and not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numeric<'b> {
    kind: Kind,
    /// The power of 10000 that the first group stands for.
    weight: i64,
    /// Digits after the point.
    scale: usize,
    groups: &'b [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Positive,
    Negative,
    Word(&'static str),
}

/// The highest scale there is.
const MAX_SCALE: u16 = 0x3fff;
/// The value of a group is below this.
const BASE: u16 = 10_000;

impl<'b> Numeric<'b> {
    /// `None` if the bytes are no numeric.
    pub(super) fn parse(bytes: &'b [u8]) -> Option<Self> {
        let (head, groups) = bytes.split_first_chunk::<8>()?;
        let [count, weight, sign, scale] = [0, 2, 4, 6].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        let whole = groups
            .chunks_exact(2)
            .all(|group| u16::from_be_bytes([group[0], group[1]]) < BASE);
        if groups.len() != usize::from(count) * 2 || !whole || scale > MAX_SCALE {
            return None;
        }
        let kind = match sign {
            0 => Kind::Positive,
            0x4000 => Kind::Negative,
            0xc000 => Kind::Word("NaN"),
            0xd000 => Kind::Word("Infinity"),
            0xf000 => Kind::Word("-Infinity"),
            _ => return None,
        };
        Some(Self {
            kind,
            weight: i64::from(weight as i16),
            scale: usize::from(scale),
            groups,
        })
    }

    /// The group that stands for a power of 10000.
    fn group(&self, power: i64) -> u16 {
        let at = usize::try_from(self.weight - power).ok();
        let bytes = at.and_then(|at| self.groups.get(at * 2..at * 2 + 2));
        bytes.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The most bytes that its text has.
    pub(super) fn text_length(&self) -> usize {
        let whole = usize::try_from(self.weight + 1).unwrap_or_default().max(1);
        4 * whole + self.scale + 2
    }

    /// Appends its text: with as many digits after the point as it has, no exponent.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        match self.kind {
            Kind::Word(word) => return to.extend_from_slice(word.as_bytes()),
            Kind::Negative => to.push(b'-'),
            Kind::Positive => {}
        }
        let begin = to.len();
        for power in (0..=self.weight).rev() {
            let group = self.group(power);
            match to.len() == begin {
                true if group == 0 => {}
                true => to.extend_from_slice(group.to_string().as_bytes()),
                false => to.extend_from_slice(&four(group)),
            }
        }
        if to.len() == begin {
            to.push(b'0');
        }
        if self.scale > 0 {
            to.push(b'.');
            let end = to.len() + self.scale;
            let mut power = -1;
            while to.len() < end {
                to.extend_from_slice(&four(self.group(power)));
                power -= 1;
            }
            to.truncate(end);
        }
    }

    /// The value in units of `10^-scale`, if it is below `10^precision` and nothing is lost. `None` also of what only its
    /// text can tell.
    pub(super) fn unscaled(&self, precision: u8, scale: i8) -> Option<i128> {
        let is_negative = match self.kind {
            Kind::Positive => false,
            Kind::Negative => true,
            Kind::Word(_) => return None,
        };
        let mut value = 0i128;
        for group in self.groups.chunks_exact(2) {
            let group = u16::from_be_bytes([group[0], group[1]]);
            value = value.checked_mul(i128::from(BASE))?.checked_add(i128::from(group))?;
        }
        let last = self.weight + 1 - (self.groups.len() / 2) as i64;
        let power = 4 * last + i64::from(scale);
        let by = 10i128.checked_pow(u32::try_from(power.unsigned_abs()).ok()?);
        let value = match (value, by) {
            (0, _) => 0,
            (value, Some(by)) if power >= 0 => value.checked_mul(by)?,
            (value, Some(by)) if value % by == 0 => value / by,
            _ => return None,
        };
        if value >= 10i128.checked_pow(precision.into())? {
            return None;
        }
        Some(if is_negative { -value } else { value })
    }
}

/// A group with its zeros.
fn four(group: u16) -> [u8; 4] {
    [group / 1000, group / 100 % 10, group / 10 % 10, group % 10].map(|digit| b'0' + digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::value;

    fn bytes(groups: &[u16], weight: i16, sign: u16, scale: u16) -> Vec<u8> {
        let head = [groups.len() as u16, weight as u16, sign, scale];
        head.iter().chain(groups).flat_map(|word| word.to_be_bytes()).collect()
    }

    fn text(bytes: &[u8]) -> Option<String> {
        let mut text = Vec::new();
        let numeric = Numeric::parse(bytes)?;
        numeric.write(&mut text);
        assert!(
            text.len() <= numeric.text_length() + 8,
            "the text is no longer than was said"
        );
        Some(String::from_utf8(text).unwrap())
    }

    #[test]
    fn numerics_are_written_as_the_server_writes_them() {
        for (groups, weight, sign, scale, expected) in [
            (&[][..], 0, 0, 0, "0"),
            (&[], 0, 0, 4, "0.0000"),
            (&[1], 0, 0, 0, "1"),
            (&[1, 2345], 1, 0x4000, 0, "-12345"),
            (&[1], 2, 0, 2, "100000000.00"),
            (&[1234, 5600], 0, 0, 2, "1234.56"),
            (&[1], -1, 0x4000, 4, "-0.0001"),
            (&[5000], -3, 0, 9, "0.000000005"),
            (&[], 0, 0xc000, 0, "NaN"),
            (&[], 0, 0xd000, 0, "Infinity"),
            (&[], 0, 0xf000, 0, "-Infinity"),
        ] {
            assert_eq!(text(&bytes(groups, weight, sign, scale)).as_deref(), Some(expected));
        }
        assert_eq!(
            text(&bytes(&[1], i16::MAX, 0, MAX_SCALE)).unwrap().len(),
            1 + 4 * 32_767 + 1 + 0x3fff
        );
    }

    #[test]
    fn what_is_no_numeric_is_none() {
        let sound = bytes(&[1, 2], 1, 0, 0);
        for end in 0..sound.len() {
            assert_eq!(Numeric::parse(&sound[..end]), None, "cut after {end}");
        }
        for wrong in [
            bytes(&[BASE], 0, 0, 0),
            bytes(&[1], 0, 0x1234, 0),
            bytes(&[1], 0, 0, MAX_SCALE + 1),
            [sound.as_slice(), &[0]].concat(),
            // A count that is negative, or far more than there is.
            [&[0xff, 0xff], &sound[2..]].concat(),
            [&[0x7f, 0xff], &sound[2..]].concat(),
        ] {
            assert_eq!(Numeric::parse(&wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        /// What is read of the groups is what is read of the text, or nothing.
        #[test]
        fn units_are_those_of_the_text(
            groups in prop::collection::vec(prop_oneof![0..BASE, Just(0), Just(9999)], 0..12),
            weight in -6..12i16,
            is_negative: bool,
            digits in 0..40u16,
            precision in 1..=38u8,
            scale in 0..=38i8,
        ) {
            prop_assume!(scale as u8 <= precision);
            let sign = if is_negative { 0x4000 } else { 0 };
            // As the server does, digits that aren't shown are none.
            let after = groups.len() as i64 - 1 - i64::from(weight);
            let digits = digits.max(u16::try_from(after.max(0) * 4).unwrap());
            let bytes = bytes(&groups, weight, sign, digits);
            let numeric = Numeric::parse(&bytes).unwrap();
            let of_text = value::decimal(text(&bytes).unwrap().as_bytes(), precision, scale);
            match numeric.unscaled(precision, scale) {
                Some(unscaled) => prop_assert_eq!(Ok(unscaled), of_text),
                // Too many digits for one integer, of which the text drops zeros.
                None => prop_assert!(of_text.is_err() || groups.len() > 9),
            }
        }

        #[test]
        fn any_bytes_are_a_numeric_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(numeric) = Numeric::parse(&bytes) {
                let mut text = Vec::new();
                numeric.write(&mut text);
                prop_assert!(text.len() <= numeric.text_length() + 8);
                numeric.unscaled(38, 10);
            }
        }
    }
}
