//! Header blocks of HTTP/2 (RFC 7541), decoded as they came: what is wrong in a field is seen, and
//! which field it is.

mod huffman;

use std::collections::VecDeque;

/// Bytes of the table of the fields that came before: what a peer may use that was told nothing
/// else.
const TABLE_BYTES: usize = 4096;

/// What a field of the table counts beside its bytes.
const ENTRY_COST: usize = 32;

/// The block cannot be decoded: what follows on the connection could not be either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// Name and value.
type Field = (Box<[u8]>, Box<[u8]>);

/// Decodes the blocks of one direction of a connection.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The latest first.
    entries: VecDeque<Field>,
    size: usize,
    most: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: TABLE_BYTES, name: Vec::new(), value: Vec::new() }
    }

    /// Gives each field of a whole block, name and value.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Corrupt> {
        let mut first = true;
        while let Some(&byte) = block.first() {
            match byte {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    let (name, value) = self.entry(index)?;
                    field(name, value);
                }
                0x40.. => {
                    self.literal(&mut block, 6)?;
                    field(&self.name, &self.value);
                    self.insert();
                }
                0x20.. => {
                    let most = integer(&mut block, 5)?;
                    if !first || most > TABLE_BYTES {
                        return Err(Corrupt);
                    }
                    self.most = most;
                    self.evict(0);
                    continue;
                }
                _ => {
                    self.literal(&mut block, 4)?;
                    field(&self.name, &self.value);
                }
            }
            first = false;
        }
        Ok(())
    }

    /// A name, by its index or in full, and a value.
    fn literal(&mut self, block: &mut &[u8], prefix: u8) -> Result<(), Corrupt> {
        let index = integer(block, prefix)?;
        self.name.clear();
        if index == 0 {
            string(block, &mut self.name)?;
        } else {
            let mut name = std::mem::take(&mut self.name);
            name.extend_from_slice(self.entry(index)?.0);
            self.name = name;
        }
        self.value.clear();
        string(block, &mut self.value)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Corrupt> {
        let index = index.checked_sub(1).ok_or(Corrupt)?;
        match STATIC.get(index) {
            Some(&entry) => Ok(entry),
            None => {
                self.entries.get(index - STATIC.len()).map(|(name, value)| (&**name, &**value)).ok_or(Corrupt)
            }
        }
    }

    fn insert(&mut self) {
        let cost = self.name.len() + self.value.len() + ENTRY_COST;
        self.evict(cost);
        if cost <= self.most {
            self.size += cost;
            self.entries.push_front((self.name[..].into(), self.value[..].into()));
        }
    }

    /// Makes room for so many bytes, or as many as there can be.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.most {
            let Some((name, value)) = self.entries.pop_back() else { return };
            self.size -= name.len() + value.len() + ENTRY_COST;
        }
    }
}

/// An integer whose first bits are the lower ones of a byte. Nothing that is legal here is longer
/// than five bytes.
fn integer(block: &mut &[u8], prefix: u8) -> Result<usize, Corrupt> {
    let mut next = || {
        let (byte, rest) = block.split_first().ok_or(Corrupt)?;
        *block = rest;
        Ok(usize::from(*byte))
    };
    let mask = (1 << prefix) - 1;
    let mut value = next()? & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Corrupt)
}

fn string(block: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Corrupt> {
    let is_coded = block.first().ok_or(Corrupt)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(Corrupt)?;
    *block = rest;
    if is_coded {
        return huffman::decode(bytes, text);
    }
    text.extend_from_slice(bytes);
    Ok(())
}

/// Puts a field behind a block, in full and without a place in any table.
pub(super) fn encode(name: &[u8], value: &[u8], block: &mut Vec<u8>) {
    block.push(0);
    for text in [name, value] {
        encode_length(text.len(), block);
        block.extend_from_slice(text);
    }
}

fn encode_length(length: usize, block: &mut Vec<u8>) {
    const MASK: usize = 0x7f;
    if length < MASK {
        return block.push(length as u8);
    }
    block.push(MASK as u8);
    let mut rest = length - MASK;
    while rest > MASK {
        block.push(0x80 | (rest & MASK) as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// RFC 7541 appendix A.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Corrupt> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push(format!("{}={}", text(name), text(value))))?;
        Ok(fields)
    }

    /// RFC 7541 appendix C.4.
    #[test]
    fn decodes_the_requests_of_the_rfc() {
        let mut decoder = Decoder::new();
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let common = [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"];
        assert_eq!(decoded(&mut decoder, first).unwrap(), common);
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        let fields = decoded(&mut decoder, second).unwrap();
        assert_eq!(
            (&fields[..4], fields[4].as_str()),
            (&common.map(str::to_owned)[..], "cache-control=no-cache")
        );
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let fields = decoded(&mut decoder, third).unwrap();
        let expected = [
            ":method=GET",
            ":scheme=https",
            ":path=/index.html",
            ":authority=www.example.com",
            "custom-key=custom-value",
        ];
        assert_eq!(fields, expected);
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for length in [0, 1, 126, 127, 128, 254, 255, 16_000, 70_000] {
            let (name, value) = ("n".repeat(length.max(1)), "v".repeat(length));
            let mut block = Vec::new();
            encode(name.as_bytes(), value.as_bytes(), &mut block);
            assert_eq!(decoded(&mut Decoder::new(), &block).unwrap(), [format!("{name}={value}")]);
        }
    }

    #[test]
    fn the_table_stays_within_its_bytes() {
        let mut decoder = Decoder::new();
        let insert = |length: usize| {
            let mut block = Vec::new();
            encode(b"x", &vec![b'v'; length], &mut block);
            block[0] = 0x40;
            block
        };
        for _ in 0..100 {
            decoded(&mut decoder, &insert(100)).unwrap();
        }
        assert_eq!((decoder.entries.len(), decoder.size), (30, 30 * 133));
        decoded(&mut decoder, &insert(5000)).unwrap();
        assert_eq!((decoder.entries.len(), decoder.size), (0, 0));
        decoded(&mut decoder, &insert(100)).unwrap();
        decoded(&mut decoder, &[0x20]).unwrap();
        assert_eq!(decoder.entries.len(), 0);
    }

    #[test]
    fn refuses_what_cannot_be_decoded() {
        for block in [
            &[0x80][..],
            &[0xbe],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x82, 0x20],
            &[0x3f, 0xe2, 0x1f],
            &[0x00],
            &[0x00, 0x01],
            &[0x00, 0x05, b'a'],
            &[0x40, 0x01, b'a', 0x81, 0x18],
        ] {
            assert_eq!(decoded(&mut Decoder::new(), block), Err(Corrupt), "{block:?}");
        }
    }
}
