//! The patterns of policies against RE2 itself, which Cilium's proxy matches them with.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use policy::Pattern;

/// Reads lines of hexadecimal text: a pattern, then its texts. Answers each with `-`, or `0` and
/// `1` for each text.
const PROGRAM: &str = r#"
import os, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import re2
for line in sys.stdin:
    pattern, *texts = [bytes.fromhex(word).decode() for word in line.rstrip("\n").split(" ")]
    try:
        program = re2.compile(pattern)
    except re2.error:
        print("-")
        continue
    print("".join("01"[program.fullmatch(text) is not None] for text in texts) or "+")
"#;

/// Python with RE2; None, and a line that says so, without it.
fn python() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let python = home.join(".cache/selvage/tools/re2/bin/python");
    if python.exists() {
        return Some(python);
    }
    let reason = format!("no RE2 in {}: `make test-tools` installs it", python.display());
    if std::env::var_os("MESH_REQUIRE_ALL").is_some_and(|value| value == "1") {
        panic!("MESH_REQUIRE_ALL=1, but this machine lacks something: {reason}");
    }
    println!("skipped: {reason}");
    None
}

/// What RE2 says to each pattern.
fn ask_re2(python: &PathBuf, questions: &[(String, Vec<String>)]) -> Vec<String> {
    let hex = |text: &String| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines = questions.iter().map(|(pattern, texts)| {
        let words: Vec<_> = std::iter::once(pattern).chain(texts).map(hex).collect();
        words.join(" ") + "\n"
    });
    let input: String = lines.collect();
    let mut child = Command::new(python)
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The same of ours.
fn ask_us(pattern: &str, texts: &[String]) -> String {
    match Pattern::new(pattern) {
        Err(_) => "-".to_owned(),
        Ok(_) if texts.is_empty() => "+".to_owned(),
        Ok(pattern) => texts.iter().map(|text| if pattern.matches(text) { '1' } else { '0' }).collect(),
    }
}

/// How many patterns RE2 takes, and how many match some text; None: skipped.
fn compare(questions: &[(String, Vec<String>)]) -> Option<(usize, usize)> {
    let python = python()?;
    let answers = ask_re2(&python, questions);
    assert_eq!(answers.len(), questions.len());
    let (mut taken, mut matched) = (0, 0);
    let mut wrong = Vec::new();
    for ((pattern, texts), theirs) in questions.iter().zip(answers) {
        taken += usize::from(theirs != "-");
        matched += usize::from(theirs.contains('1'));
        let ours = ask_us(pattern, texts);
        if ours != theirs {
            wrong.push(format!("{pattern:?} on {texts:?}: {ours}, RE2 {theirs}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    Some((taken, matched))
}

/// Patterns in which the dialects differ, and what people write.
const PATTERNS: &[&str] = &[
    r"/item\?id=\d+",
    r"/\w{1,16}",
    r"[\w-]{36}",
    r"/users/{id}",
    r"/\Qa.b\E/.*",
    r"\Qa.b",
    r"\Q\E*",
    r"\Qab\E*",
    r"a++",
    r"a**",
    r"a+*",
    r"a{2}{3}",
    r"a{1001}",
    r"a{1000}",
    r"a{,5}",
    r"a{01}",
    r"a{0}",
    r"a{2,1}",
    r"a{2,}",
    r"(a{100}){11}",
    r"(a{100}){10}",
    r"(a{2}){500}",
    r"((a{10}){10}){11}",
    r"(a{600}){1}",
    r"(a+){1000}",
    r"{",
    r"{2}",
    r"{,2}",
    r"a{",
    r"a{}",
    r"a{1",
    r"a{1,2,3}",
    r"a{999999999999}",
    r"a{b}",
    r"}",
    r"]",
    r"a]b",
    r"[a-z&&[^b]]",
    r"[a[bc]]",
    r"[a--b]",
    r"[a~~b]",
    r"[--/]",
    r"[a-z--b]",
    r"[]a]",
    r"[^]a]",
    r"[]",
    r"[",
    r"[a",
    r"[^",
    r"[a-]",
    r"[-a]",
    r"[a\-z]",
    r"[\w-z]",
    r"[a-\d]",
    r"[z-a]",
    r"[\d-z]",
    r"[[:alpha:]]+",
    r"[[:^alpha:]]+",
    r"[[:foo:]]",
    r"[[:space:]]",
    r"[[:word:]-]",
    r"[:alpha:]",
    r"[[.a.]]",
    r"[[=a=]]",
    r"[[:alpha",
    r"[\pL\d]",
    r"\pN+",
    r"\PN+",
    r"\p{Greek}+",
    r"\p{^Greek}",
    r"\P{^Greek}",
    r"\p{greek}",
    r"\p{Grek}",
    r"\p{L}",
    r"\p{Letter}",
    r"\p{Any}",
    r"\P{Any}",
    r"\p{C}",
    r"\p{Cs}",
    r"\p{Cn}",
    r"\p{LC}",
    r"\p",
    r"\p{",
    r"\pX",
    r"\C",
    r"\C\C",
    r"a\Cb",
    r"\d",
    r"\D",
    r"\s",
    r"\S",
    r"\w",
    r"\W",
    r"[^\d]",
    r"[\D]",
    r"[\W\d]",
    r"(?i)k",
    r"(?i)[k]",
    r"(?i)\w",
    r"(?i)\W",
    r"(?i)[^k]",
    r"(?i)s+",
    r"(?i)stra\x{df}e",
    r"(?i)GET",
    r"a(?i)b|c",
    r"(?i:a)b",
    r"(a(?i)b)c",
    r"(?-i)a",
    r"(?i-s)a",
    r"(?s).",
    r".",
    r"(?m)^a$",
    r"(?m)a\nb",
    r"(?m:^)a",
    r"(?ms)a.^b$",
    r"a\z",
    r"\Aa",
    r"a\Z",
    r"(?x)a b",
    r"(?u)a",
    r"(?R)",
    r"(?U)a+",
    r"(?)",
    r"(?-)",
    r"(?i-)a",
    r"(?--i)a",
    r"(?i",
    r"(?",
    r"(?=a)",
    r"(?!a)",
    r"(?<=a)",
    r"(?<!a)",
    r"(?P<n>a)",
    r"(?<n>a)",
    r"(?P<n>a)(?P<n>b)",
    r"(?P<>a)",
    r"(?P<n",
    r"(?P=n)",
    r"(?P>n)",
    r"(?'n'a)",
    r"(?#c)",
    r"(?P<1>a)",
    r"(?P<a-b>c)",
    r"(?>a)",
    r"(?|a)",
    r"\ba\b",
    r"a\Bb",
    r"\B",
    r"^*",
    r"$*",
    r"^$",
    r"^^a$$",
    r"a|*",
    r"*a",
    r"(*a)",
    r"(|a)*",
    r"()",
    r"()*",
    r"|",
    r"a||b",
    r"(?i)*",
    r"a(?i)*",
    r"a*(?i)*",
    r"a*?",
    r"a+?b",
    r"a??",
    r"a???",
    r"a{2}?",
    r"a{2}??",
    r"(",
    r")",
    r"(a",
    r"a)",
    r"a)|(b",
    r"\",
    r"a\",
    r"\1",
    r"(a)\1",
    r"\8",
    r"\0",
    r"\07",
    r"\012",
    r"\0123",
    r"\101",
    r"\377",
    r"\400",
    r"\777",
    r"\12",
    r"\18",
    r"\x41",
    r"\x4",
    r"\x",
    r"\x{41}",
    r"\x{}",
    r"\x{110000}",
    r"\x{10FFFF}",
    r"\x{d800}",
    r"[\x{d800}-\x{e000}]",
    r"\x{0000041}",
    r"\x{zz}",
    r"\a\f\n\r\t\v",
    r"\e",
    r"\c",
    r"\cA",
    r"\h",
    r"\K",
    r"\G",
    r"\R",
    r"\X",
    r"\N",
    r"\u0041",
    r"\U",
    r"\_",
    r"\-",
    r"\/",
    r"\<",
    r"\>",
    r"\ ",
    r"\é",
    r"\&",
    r"[\b]",
    r"[\A]",
    r"[\Qa\E]",
    r"[\pX]",
    r"[\x41-\x43]",
    r"[\101]",
    r"[\C]",
    "é+",
    "[é-ü]",
    "(?i)É",
    "a\nb",
    "a#b c",
    r"[^\x00-\x{10FFFF}]",
    r"[^\x{0}-\x{10FFFF}]?",
    r"(?i)[^\x00-\x{10FFFF}]",
    r"^a|b$",
    r"(?i)\x{17f}",
    r"(?i)[[:lower:]]",
    r"(?i)[[:^lower:]]",
    r"(?i)\p{Lu}",
    r"(?i)\P{Lu}",
    r"(?i)[\P{Lu}]",
    r"(((((((((((a)))))))))))",
    r"/api/v[0-9]+/(users|orders)(/[^/]+)?",
    r"/com\.example\.Orders/.*",
    r"\.\*\+",
];

const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "b",
    "ab",
    "aB",
    "abc",
    "aa",
    "aaa",
    "aaaa",
    "c",
    "C",
    "k",
    "K",
    "\u{212a}",
    "s",
    "S",
    "\u{17f}",
    "é",
    "É",
    "\u{663}",
    "/item?id=12",
    "/item?id=\u{663}",
    "/abc_1",
    "123e4567-e89b-12d3-a456-426614174000",
    "/users/{id}",
    "/users/id",
    "/a.b/x",
    "a.b",
    "{",
    "{2}",
    "{,2}",
    "a{",
    "a{}",
    "a{1",
    "a{b}",
    "a{,5}",
    "a{01}",
    "}",
    "]",
    "a]b",
    "-",
    "&",
    "[",
    "&]",
    "b]",
    "a&]",
    "^",
    "~",
    "--",
    "/",
    ".",
    ":",
    "l",
    "=",
    "0",
    "1",
    "8",
    "\n",
    "\r",
    "\t",
    " ",
    "\u{b}",
    "\u{c}",
    "\u{7}",
    "a\nb",
    "a b",
    "a#b c",
    "\0",
    "\n3",
    "\u{1}8",
    "_",
    "<",
    ">",
    "ü",
    "α",
    "ß",
    "ẞ",
    "straße",
    "STRASSE",
    "STRAẞE",
    "get",
    "GET",
    "/api/v1/users/7",
    "/com.example.Orders/Create",
    ".*+",
    "\u{ff}",
    "\u{100}",
    "\u{1ff}",
    "\u{10ffff}",
    "\u{e000}",
    "\u{7}\u{c}\n\r\t\u{b}",
    "z",
    "word-",
    "axb",
    "aéb",
    "x",
    "Q",
    "E",
    "\\",
];

#[test]
fn patterns_mean_what_they_mean_to_re2() {
    let texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    let mut questions: Vec<_> =
        PATTERNS.iter().map(|pattern| ((*pattern).to_owned(), texts.clone())).collect();
    // Every ASCII character after a backslash, outside and inside of a class, with something after
    // it.
    for byte in 0x20..0x7fu8 {
        let character = char::from(byte);
        for pattern in [format!("\\{character}"), format!("[\\{character}x]"), format!("a\\{character}b")] {
            questions.push((pattern, texts.clone()));
        }
    }
    let Some((taken, matched)) = compare(&questions) else { return };
    assert!(taken > 200 && matched > 150, "{taken} taken, {matched} matched");
}

const PIECES: &[&str] = &[
    "a",
    "b",
    "B",
    "k",
    "é",
    "-",
    "/",
    ".",
    "*",
    "+",
    "?",
    "|",
    "(",
    ")",
    "(?:",
    "(?i)",
    "(?s)",
    "(?m)",
    "(?i:",
    "(?-i)",
    "(?P<n>",
    "[",
    "]",
    "[^",
    "[a-k]",
    "[^b]",
    "[:alpha:]",
    "&&",
    "--",
    "~~",
    "^",
    "$",
    "{",
    "}",
    "{2}",
    "{1,2}",
    "{0,}",
    "{,2}",
    "{3",
    ",",
    "2",
    r"\d",
    r"\w",
    r"\W",
    r"\s",
    r"\b",
    r"\B",
    r"\Q",
    r"\E",
    r"\pL",
    r"\p{Lu}",
    r"\P{^Lu}",
    r"\.",
    r"\x41",
    r"\x{6b}",
    r"\101",
    r"\n",
    r"\A",
    r"\z",
    r"\C",
    "\\",
    "_",
    " ",
];

/// Patterns of pieces at random, on texts of the same characters.
#[test]
fn generated_patterns_mean_what_they_mean_to_re2() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit as u64).unwrap()
    };
    let letters = ["a", "b", "B", "k", "K", "é", "É", "A", "-", "/", "\n", "2", "_", "&", "]", "[", "{", "~"];
    let mut questions = Vec::new();
    for _ in 0..2_500 {
        let pattern: String = (0..=below(7)).map(|_| PIECES[below(PIECES.len())]).collect();
        let texts = (0..12).map(|_| (0..below(4)).map(|_| letters[below(letters.len())]).collect()).collect();
        questions.push((pattern, texts));
    }
    let Some((taken, matched)) = compare(&questions) else { return };
    assert!(taken > 1_000 && matched > 150, "{taken} taken, {matched} matched");
}
