//! Character classes and escapes of RE2.

/// What RE2 calls a class; never empty text, so that it can be written in brackets.
#[derive(Debug, Default)]
pub(super) struct Class {
    negated: bool,
    /// In the words of the `regex` crate, with every character as a code point.
    parts: String,
}

/// `\d`, `\s` and `\w`: ASCII, and `\s` without the vertical tab.
const PERL: [(char, &str); 3] = [('d', "0-9"), ('s', r"\t\n\f\r\x20"), ('w', "0-9A-Za-z_")];

const POSIX: [(&str, &str); 14] = [
    ("alnum", "0-9A-Za-z"),
    ("alpha", "A-Za-z"),
    ("ascii", r"\x00-\x7F"),
    ("blank", r"\t\x20"),
    ("cntrl", r"\x00-\x1F\x7F"),
    ("digit", "0-9"),
    ("graph", r"\x21-\x7E"),
    ("lower", "a-z"),
    ("print", r"\x20-\x7E"),
    ("punct", r"\x21-\x2F\x3A-\x40\x5B-\x60\x7B-\x7E"),
    ("space", r"\t\n\x0B\f\r\x20"),
    ("upper", "A-Z"),
    ("word", "0-9A-Za-z_"),
    ("xdigit", "0-9A-Fa-f"),
];

/// General categories. `C` has neither surrogates, which no text has, nor what is not assigned.
const CATEGORIES: [&str; 36] = [
    "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No", "P",
    "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs", "C", "Cs",
];

/// As RE2 of 2025 spells them.
#[rustfmt::skip]
const SCRIPTS: [&str; 163] = [
    "Adlam", "Ahom", "Anatolian_Hieroglyphs", "Arabic", "Armenian", "Avestan", "Balinese", "Bamum",
    "Bassa_Vah", "Batak", "Bengali", "Bhaiksuki", "Bopomofo", "Brahmi", "Braille", "Buginese", "Buhid",
    "Canadian_Aboriginal", "Carian", "Caucasian_Albanian", "Chakma", "Cham", "Cherokee", "Chorasmian",
    "Common", "Coptic", "Cuneiform", "Cypriot", "Cypro_Minoan", "Cyrillic", "Deseret", "Devanagari",
    "Dives_Akuru", "Dogra", "Duployan", "Egyptian_Hieroglyphs", "Elbasan", "Elymaic", "Ethiopic",
    "Georgian", "Glagolitic", "Gothic", "Grantha", "Greek", "Gujarati", "Gunjala_Gondi", "Gurmukhi",
    "Han", "Hangul", "Hanifi_Rohingya", "Hanunoo", "Hatran", "Hebrew", "Hiragana", "Imperial_Aramaic",
    "Inherited", "Inscriptional_Pahlavi", "Inscriptional_Parthian", "Javanese", "Kaithi", "Kannada",
    "Katakana", "Kawi", "Kayah_Li", "Kharoshthi", "Khitan_Small_Script", "Khmer", "Khojki", "Khudawadi",
    "Lao", "Latin", "Lepcha", "Limbu", "Linear_A", "Linear_B", "Lisu", "Lycian", "Lydian", "Mahajani",
    "Makasar", "Malayalam", "Mandaic", "Manichaean", "Marchen", "Masaram_Gondi", "Medefaidrin",
    "Meetei_Mayek", "Mende_Kikakui", "Meroitic_Cursive", "Meroitic_Hieroglyphs", "Miao", "Modi",
    "Mongolian", "Mro", "Multani", "Myanmar", "Nabataean", "Nag_Mundari", "Nandinagari", "New_Tai_Lue",
    "Newa", "Nko", "Nushu", "Nyiakeng_Puachue_Hmong", "Ogham", "Ol_Chiki", "Old_Hungarian",
    "Old_Italic", "Old_North_Arabian", "Old_Permic", "Old_Persian", "Old_Sogdian", "Old_South_Arabian",
    "Old_Turkic", "Old_Uyghur", "Oriya", "Osage", "Osmanya", "Pahawh_Hmong", "Palmyrene", "Pau_Cin_Hau",
    "Phags_Pa", "Phoenician", "Psalter_Pahlavi", "Rejang", "Runic", "Samaritan", "Saurashtra",
    "Sharada", "Shavian", "Siddham", "SignWriting", "Sinhala", "Sogdian", "Sora_Sompeng", "Soyombo",
    "Sundanese", "Syloti_Nagri", "Syriac", "Tagalog", "Tagbanwa", "Tai_Le", "Tai_Tham", "Tai_Viet",
    "Takri", "Tamil", "Tangsa", "Tangut", "Telugu", "Thaana", "Thai", "Tibetan", "Tifinagh", "Tirhuta",
    "Toto", "Ugaritic", "Vai", "Vithkuqi", "Wancho", "Warang_Citi", "Yezidi", "Yi", "Zanabazar_Square",
];

const EVERYTHING: &str = r"\x00-\x{10FFFF}";

impl Class {
    /// All characters from one to another.
    pub(super) fn range(first: u32, last: u32) -> Self {
        let mut class = Self::default();
        class.add_range(first, last);
        class
    }

    /// For the `regex` crate. What is in it is folded before it is negated, as RE2 does.
    pub(super) fn text(&self, fold: bool) -> String {
        let brackets = self.brackets();
        if fold { format!("(?i:{brackets})") } else { brackets }
    }

    fn brackets(&self) -> String {
        match (self.negated, self.parts.as_str()) {
            // A class of surrogates only.
            (false, "") => format!("[^{EVERYTHING}]"),
            (true, "") => format!("[{EVERYTHING}]"),
            (negated, parts) => format!("[{}{parts}]", if negated { "^" } else { "" }),
        }
    }

    /// `[...]` at the beginning of `text`, and its length.
    pub(super) fn parse(text: &str) -> Result<(Self, usize), String> {
        let mut class = Self::default();
        let mut rest = &text[1..];
        if let Some(after) = rest.strip_prefix('^') {
            (class.negated, rest) = (true, after);
        }
        let mut first = true;
        while first || !rest.starts_with(']') {
            if rest.is_empty() {
                return Err("`[` without `]`".to_owned());
            }
            first = false;
            let length = class.element(rest)?;
            rest = &rest[length..];
        }
        Ok((class, text.len() - rest.len() + 1))
    }

    /// One element of a class, and its length.
    fn element(&mut self, text: &str) -> Result<usize, String> {
        if let Some((name, _)) = text.strip_prefix("[:").and_then(|text| text.split_once(":]")) {
            let (negated, plain) = match name.strip_prefix('^') {
                Some(plain) => (true, plain),
                None => (false, name),
            };
            let (_, parts) = POSIX
                .iter()
                .find(|(known, _)| *known == plain)
                .ok_or_else(|| format!("`[:{name}:]` is no class of characters"))?;
            self.add(&Self { negated, parts: (*parts).to_owned() });
            return Ok(name.len() + "[::]".len());
        }
        if let Some((class, length)) = Self::escaped(text)? {
            self.add(&class);
            return Ok(length);
        }
        let (low, length) = character(text)?;
        let after = &text[length..];
        let Some(end) = after.strip_prefix('-').filter(|end| !end.starts_with(']') && !end.is_empty()) else {
            self.add_range(low, low);
            return Ok(length);
        };
        let (high, end) = character(end)?;
        let length = length + 1 + end;
        if high < low {
            return Err(format!("`{}` is no range: its end comes before its beginning", &text[..length]));
        }
        self.add_range(low, high);
        Ok(length)
    }

    /// `\d` and the like, `\pN`, `\p{Greek}`; None: an escape of something else, or none.
    pub(super) fn escaped(text: &str) -> Result<Option<(Self, usize)>, String> {
        let Some(name) = text.strip_prefix('\\').and_then(|text| text.chars().next()) else {
            return Ok(None);
        };
        let lower = name.to_ascii_lowercase();
        let negated = name.is_ascii_uppercase();
        if let Some((_, parts)) = PERL.iter().find(|(known, _)| *known == lower) {
            return Ok(Some((Self { negated, parts: (*parts).to_owned() }, 2)));
        }
        if lower != 'p' {
            return Ok(None);
        }
        let after = &text[2..];
        let (name, length) = match after.strip_prefix('{') {
            Some(inside) => {
                let name = inside.split_once('}').ok_or("`\\p{` without `}`")?.0;
                (name, name.len() + 4)
            }
            None => {
                let length = after.chars().next().ok_or("`\\p` without a name")?.len_utf8();
                (&after[..length], length + 2)
            }
        };
        let (negated, plain) = match name.strip_prefix('^') {
            Some(plain) => (!negated, plain),
            None => (negated, name),
        };
        let parts = match plain {
            "Any" => EVERYTHING.to_owned(),
            "C" => r"\p{gc=Cc}\p{gc=Cf}\p{gc=Co}".to_owned(),
            "Cs" => String::new(),
            plain if CATEGORIES.contains(&plain) => format!(r"\p{{gc={plain}}}"),
            plain if SCRIPTS.contains(&plain) => format!(r"\p{{sc={plain}}}"),
            _ => return Err(format!("`{}` is no class of characters", &text[..length])),
        };
        Ok(Some((Self { negated, parts }, length)))
    }

    fn add(&mut self, other: &Self) {
        if other.negated || other.parts.is_empty() {
            self.parts.push_str(&other.brackets());
        } else {
            self.parts.push_str(&other.parts);
        }
    }

    /// Without surrogates at its ends, which no text has. In its midst they stay: `regex-syntax`
    /// negates a class with ranges on both sides of them wrongly.
    fn add_range(&mut self, first: u32, last: u32) {
        let surrogates = 0xd800..0xe000;
        let first = if surrogates.contains(&first) { surrogates.end } else { first };
        let last = if surrogates.contains(&last) { surrogates.start - 1 } else { last };
        if first <= last {
            self.parts.push_str(&format!(r"\x{{{first:X}}}-\x{{{last:X}}}"));
        }
    }
}

/// A character or the escape of one, and its length.
pub(super) fn character(text: &str) -> Result<(u32, usize), String> {
    let mut characters = text.chars();
    let first = characters.next().ok_or("a character is missing")?;
    if first != '\\' {
        return Ok((u32::from(first), first.len_utf8()));
    }
    let escaped = characters.next().ok_or("nothing follows the last backslash")?;
    let rest = characters.as_str();
    let wrong = || format!(r"`\{escaped}` is no escape that RE2 knows");
    let is_octal = |rest: &str| rest.starts_with(|c: char| ('0'..='7').contains(&c));
    match escaped {
        // A single other digit would be a reference to a group.
        '0' => Ok(octal(text)),
        '1'..='7' if is_octal(rest) => Ok(octal(text)),
        'x' => hexadecimal(rest).map(|(code, length)| (code, length + 2)).ok_or_else(wrong),
        'a' => Ok((0x07, 2)),
        'f' => Ok((0x0c, 2)),
        'n' => Ok((0x0a, 2)),
        'r' => Ok((0x0d, 2)),
        't' => Ok((0x09, 2)),
        'v' => Ok((0x0b, 2)),
        other if other.is_ascii() && !other.is_ascii_alphanumeric() => Ok((u32::from(other), 2)),
        _ => Err(wrong()),
    }
}

/// Up to three digits after the backslash.
fn octal(text: &str) -> (u32, usize) {
    let digits = text.chars().skip(1).map_while(|c| c.to_digit(8)).take(3);
    digits.fold((0, 1), |(code, length), digit| (code * 8 + digit, length + 1))
}

/// `41`, `{1F600}`, and the length.
fn hexadecimal(text: &str) -> Option<(u32, usize)> {
    let (digits, length) = match text.strip_prefix('{') {
        Some(inside) => {
            let digits = inside.split_once('}')?.0;
            (digits, digits.len() + 2)
        }
        None => (text.get(..2)?, 2),
    };
    let fits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let code = u32::from_str_radix(digits.trim_start_matches('0'), 16)
        .ok()
        .or_else(|| (fits && digits.bytes().all(|byte| byte == b'0')).then_some(0))?;
    (fits && code <= 0x0010_ffff).then_some((code, length))
}
