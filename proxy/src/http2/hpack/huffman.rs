//! The Huffman code of HPACK (RFC 7541 appendix B).

use super::Corrupt;

/// Bits of the code of each byte, and of the end of a string. The code is canonical: these are all
/// of it.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const LONGEST: usize = 30;
const END: u16 = 256;

/// Codes of one length, in the upper bits of 32.
#[derive(Clone, Copy)]
struct Length {
    first: u64,
    /// Behind the last.
    limit: u64,
    /// Where the symbols of these codes begin.
    symbols: usize,
}

const TABLE: ([Length; LONGEST + 1], [u16; 257]) = table();

const fn table() -> ([Length; LONGEST + 1], [u16; 257]) {
    let mut lengths = [Length { first: 0, limit: 0, symbols: 0 }; LONGEST + 1];
    let mut symbols = [0; 257];
    let (mut code, mut count, mut length) = (0u64, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        lengths[length].first = code << (32 - length);
        lengths[length].symbols = count;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                symbols[count] = symbol as u16;
                count += 1;
                code += 1;
            }
            symbol += 1;
        }
        lengths[length].limit = code << (32 - length);
        length += 1;
    }
    (lengths, symbols)
}

/// Puts what `coded` stands for behind `text`.
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>) -> Result<(), Corrupt> {
    let mut coded = coded.iter();
    let (mut bits, mut count) = (0u64, 0usize);
    loop {
        while count < LONGEST {
            let Some(byte) = coded.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        // Ones behind the end: padding is the beginning of the code of the end.
        let window = if count >= 32 { bits >> (count - 32) } else { !(!bits << (32 - count)) } & 0xffff_ffff;
        let length = (5..=LONGEST).find(|length| window < TABLE.0[*length].limit).ok_or(Corrupt)?;
        if length > count {
            let padding = (1u64 << count) - 1;
            return if count < 8 && bits & padding == padding { Ok(()) } else { Err(Corrupt) };
        }
        let Length { first, symbols, .. } = TABLE.0[length];
        let symbol = TABLE.1[symbols + ((window - first) >> (32 - length)) as usize];
        if symbol == END {
            return Err(Corrupt);
        }
        text.push(symbol as u8);
        count -= length;
        bits &= (1 << count) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let place = TABLE.1.iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
            let Length { first, symbols, .. } = TABLE.0[length];
            let code = (first >> (32 - length)) + (place - symbols) as u64;
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        (0..bits.len()).step_by(8).map(|at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap()).collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Corrupt> {
        let mut text = Vec::new();
        decode(coded, &mut text).map(|()| text)
    }

    /// RFC 7541 appendix C.4.
    #[test]
    fn decodes_the_examples_of_the_rfc() {
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&coded).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
        for byte in 0..=255 {
            assert_eq!(decoded(&encode(&[byte])).unwrap(), [byte]);
        }
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        assert!(decoded(&[0xff]).is_err(), "a whole byte of it");
        assert!(decoded(&[0x18]).is_err(), "zeros");
        assert!(decoded(&[0x1f]).is_ok());
        assert!(decoded(&[0xff; 4]).is_err(), "the code of the end");
    }
}
