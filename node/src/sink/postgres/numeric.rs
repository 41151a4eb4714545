//! A decimal as PostgreSQL's binary `numeric`: groups of four decimal digits, most significant first.
//!
//! ```text
//! digits i16 | weight i16 (of the first group, in powers of 10000) | sign u16 | scale u16 | digits * i16
//! ```
//!
//! Written straight into the COPY buffer, with its length in front.

const POWERS: [u64; 20] = {
    let mut powers = [1u64; 20];
    let mut at = 1;
    while at < 20 {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// The most groups that 38 digits can take: 10 before the point and 10 behind it.
const GROUPS: usize = 20;

/// Appends `unscaled * 10^-scale`, with its length. `scale` is at most 38.
pub(super) fn put(unscaled: i128, scale: u8, buffer: &mut Vec<u8>) {
    let magnitude = unscaled.unsigned_abs();
    let mut groups = [0u16; GROUPS];
    let (whole, used) = match u64::try_from(magnitude) {
        Ok(small) if scale < 20 => split_small(small, scale, &mut groups),
        Ok(_) | Err(_) => split_large(magnitude, scale, &mut groups),
    };
    let mut first = 0;
    while first < used && groups[first] == 0 {
        first += 1;
    }
    let mut end = used;
    while end > first && groups[end - 1] == 0 {
        end -= 1;
    }
    let digits = &groups[first..end];
    // At most 20 groups: none of these casts loses anything.
    let weight = if digits.is_empty() {
        0
    } else {
        whole as i16 - 1 - first as i16
    };
    let sign: u16 = if unscaled < 0 { 0x4000 } else { 0 };
    buffer.extend_from_slice(&(8 + 2 * digits.len() as i32).to_be_bytes());
    buffer.extend_from_slice(&(digits.len() as i16).to_be_bytes());
    buffer.extend_from_slice(&weight.to_be_bytes());
    buffer.extend_from_slice(&sign.to_be_bytes());
    buffer.extend_from_slice(&u16::from(scale).to_be_bytes());
    for digit in digits {
        buffer.extend_from_slice(&digit.to_be_bytes());
    }
}

/// Fills the groups; returns how many stand before the point, and how many there are. Below 2^64, where division is
/// cheap: nearly every number there is.
fn split_small(magnitude: u64, scale: u8, groups: &mut [u16; GROUPS]) -> (usize, usize) {
    let power = POWERS[usize::from(scale)];
    let mut whole = magnitude / power;
    let mut fraction = magnitude % power;
    let mut before = 0;
    let mut reversed = [0u16; 5];
    while whole > 0 {
        reversed[before] = (whole % 10_000) as u16;
        whole /= 10_000;
        before += 1;
    }
    for at in 0..before {
        groups[at] = reversed[before - 1 - at];
    }
    let mut used = before;
    let mut left = usize::from(scale);
    while left > 0 {
        let group = if left >= 4 {
            fraction / POWERS[left - 4]
        } else {
            fraction * POWERS[4 - left]
        };
        groups[used] = group as u16;
        used += 1;
        if left < 4 {
            break;
        }
        left -= 4;
        fraction %= POWERS[left];
    }
    (before, used)
}

fn split_large(magnitude: u128, scale: u8, groups: &mut [u16; GROUPS]) -> (usize, usize) {
    let power = |exponent: usize| 10u128.pow(exponent as u32);
    let scale = usize::from(scale.min(38));
    let mut whole = magnitude / power(scale);
    let mut fraction = magnitude % power(scale);
    let mut before = 0;
    let mut reversed = [0u16; 10];
    while whole > 0 {
        reversed[before] = (whole % 10_000) as u16;
        whole /= 10_000;
        before += 1;
    }
    for at in 0..before {
        groups[at] = reversed[before - 1 - at];
    }
    let mut used = before;
    let mut left = scale;
    while left > 0 {
        let group = if left >= 4 {
            fraction / power(left - 4)
        } else {
            fraction * power(4 - left)
        };
        groups[used] = group as u16;
        used += 1;
        if left < 4 {
            break;
        }
        left -= 4;
        fraction %= power(left);
    }
    (before, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Length, digits, weight, sign and scale apart, and the groups.
    fn parts(unscaled: i128, scale: u8) -> (i16, u16, u16, Vec<u16>) {
        let mut buffer = Vec::new();
        put(unscaled, scale, &mut buffer);
        let words: Vec<u16> = buffer[4..]
            .chunks(2)
            .map(|word| u16::from_be_bytes([word[0], word[1]]))
            .collect();
        assert_eq!(buffer[..4], (buffer.len() as i32 - 4).to_be_bytes());
        assert_eq!(usize::from(words[0]), words.len() - 4);
        (words[1] as i16, words[2], words[3], words[4..].to_vec())
    }

    #[test]
    fn digits_weight_sign_and_scale() {
        assert_eq!(parts(0, 2), (0, 0, 2, vec![]));
        assert_eq!(parts(1, 0), (0, 0, 0, vec![1]));
        assert_eq!(parts(-12_345, 2), (0, 0x4000, 2, vec![123, 4500]));
        assert_eq!(parts(1_000_000, 0), (1, 0, 0, vec![100]));
        assert_eq!(parts(5, 6), (-2, 0, 6, vec![500]));
        assert_eq!(
            parts(i128::from(u64::MAX), 0),
            (4, 0, 0, vec![1844, 6744, 737, 955, 1615])
        );
        let largest = 10i128.pow(38) - 1;
        assert_eq!(parts(largest, 0).3.len(), 10);
        assert_eq!(
            parts(-largest, 38),
            (-1, 0x4000, 38, [vec![9999; 9], vec![9900]].concat())
        );
        assert_eq!(parts(largest, 37).3.len(), 11);
    }
}
