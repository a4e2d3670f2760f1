//! RE2's syntax, which policies are written in, in the words of the `regex` crate.
//!
//! Both match in linear time, but they are two dialects: `\d` is ASCII here and Unicode there,
//! `[a-z&&[^b]]` a class with an ampersand here and an intersection there, `{id}` a text here and
//! an error there. So a pattern is read as RE2 reads it (its `parse.cc`), and what that means is
//! written down with nothing left to interpretation.

use super::class::{self, Class};

/// Highest count of a repetition, and of repetitions within each other multiplied (RE2's
/// `max_repeat`).
const MAX_REPEAT: u32 = 1000;

/// Deepest nesting of groups. RE2 has no such limit; every level costs stack where a pattern is
/// compiled.
const MAX_DEPTH: u32 = 100;

/// What a pattern says, for `regex::bytes` with Unicode on. Err: what RE2 refuses, in words.
pub(super) fn translate(source: &str) -> Result<String, String> {
    let mut parser = Parser { rest: source, flags: Flags::default(), depth: 0 };
    let node = parser.alternation()?;
    if !parser.rest.is_empty() {
        return Err("`)` without `(`".to_owned());
    }
    Ok(node.text)
}

#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    /// `i`: upper and lower case are the same.
    fold: bool,
    /// `m`: `^` and `$` are also at line ends.
    multi_line: bool,
    /// `s`: `.` is also a line end.
    dot_newline: bool,
}

/// Something that is translated.
struct Node {
    text: String,
    /// Counts of the repetitions within each other, multiplied.
    repeats: u32,
    /// A repetition: another one needs a group around it.
    is_repetition: bool,
}

struct Parser<'a> {
    rest: &'a str,
    flags: Flags,
    depth: u32,
}

impl<'a> Parser<'a> {
    /// To the end or the `)` of the group.
    fn alternation(&mut self) -> Result<Node, String> {
        let mut text = String::new();
        let mut repeats = 1;
        // The pieces of the branch under way.
        let mut nodes: Vec<Node> = Vec::new();
        // Whether the piece before is a repetition operator, which cannot be stacked.
        let mut after_operator = false;
        loop {
            let before = self.rest;
            let Some(next) = before.chars().next().filter(|next| *next != ')') else { break };
            let mut is_operator = false;
            match next {
                '|' => {
                    self.skip(1);
                    repeats = repeats.max(close_branch(&mut text, &mut nodes));
                    text.push('|');
                }
                '*' | '+' | '?' => {
                    self.skip(1);
                    self.repeat(before, &next.to_string(), None, after_operator, &mut nodes)?;
                    is_operator = true;
                }
                '{' => match self.counts() {
                    Some((least, most)) => {
                        let operator = &before[..before.len() - self.rest.len()];
                        self.repeat(before, operator, Some((least, most)), after_operator, &mut nodes)?;
                        is_operator = true;
                    }
                    None => nodes.push(self.literal('{')),
                },
                _ => nodes.extend(self.piece(next)?),
            }
            after_operator = is_operator;
        }
        repeats = repeats.max(close_branch(&mut text, &mut nodes));
        Ok(Node { text, repeats, is_repetition: false })
    }

    /// One piece other than an operator; several for `\Q..\E`, none for flags.
    fn piece(&mut self, next: char) -> Result<Vec<Node>, String> {
        let flags = self.flags;
        let node = match next {
            '(' => return Ok(self.group()?.into_iter().collect()),
            '[' => {
                let (class, length) = Class::parse(self.rest)?;
                self.skip(length);
                node(class.text(flags.fold))
            }
            '\\' => return self.escape(),
            '.' => self.simple(1, if flags.dot_newline { "(?s:.)" } else { "(?-s:.)" }),
            '^' => self.simple(1, if flags.multi_line { "(?m:^)" } else { r"\A" }),
            '$' => self.simple(1, if flags.multi_line { "(?m:$)" } else { r"\z" }),
            character => self.literal(character),
        };
        Ok(vec![node])
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn simple(&mut self, bytes: usize, text: &str) -> Node {
        self.skip(bytes);
        node(text.to_owned())
    }

    /// Takes a character off and gives it as itself.
    fn literal(&mut self, character: char) -> Node {
        self.skip(character.len_utf8());
        self.text_of(character)
    }

    fn text_of(&self, character: char) -> Node {
        let text = regex::escape(character.encode_utf8(&mut [0; 4]));
        let folds = self.flags.fold && (character.is_ascii_alphabetic() || !character.is_ascii());
        node(if folds { format!("(?i:{text})") } else { text })
    }

    /// Applies an operator, and a `?` after it, which matters to nothing that is matched as a
    /// whole.
    fn repeat(
        &mut self,
        before: &str,
        operator: &str,
        counts: Option<(u32, Option<u32>)>,
        after_operator: bool,
        nodes: &mut [Node],
    ) -> Result<(), String> {
        if self.rest.starts_with('?') {
            self.skip(1);
        }
        let written = &before[..before.len() - self.rest.len()];
        if after_operator {
            return Err(format!("`{written}` repeats a repetition"));
        }
        if let Some((least, most)) = counts
            && (most.is_some_and(|most| most < least) || most.unwrap_or(least).max(least) > MAX_REPEAT)
        {
            return Err(format!(
                "`{written}` is no count: at most {MAX_REPEAT}, the first not above the second"
            ));
        }
        let node = nodes.last_mut().ok_or_else(|| format!("`{written}` repeats nothing"))?;
        if let Some((least, most)) = counts {
            let count = most.unwrap_or(least);
            node.repeats = node.repeats.saturating_mul(count.max(1));
            if (least >= 2 || count >= 2) && node.repeats > MAX_REPEAT {
                return Err(format!("`{written}` and the repetitions in it make more than {MAX_REPEAT}"));
            }
        }
        if node.is_repetition {
            node.text = format!("(?:{})", node.text);
        }
        node.text.push_str(operator);
        node.is_repetition = true;
        Ok(())
    }

    /// `{2}`, `{2,}`, `{2,3}`; None: the brace is a character.
    fn counts(&mut self) -> Option<(u32, Option<u32>)> {
        let (inside, rest) = self.rest.strip_prefix('{')?.split_once('}')?;
        let counts = match inside.split_once(',') {
            None => (count(inside)?, Some(count(inside)?)),
            Some((least, "")) => (count(least)?, None),
            Some((least, most)) => (count(least)?, Some(count(most)?)),
        };
        self.rest = rest;
        Some(counts)
    }

    /// From `(` to its `)`; None: it only sets flags.
    fn group(&mut self) -> Result<Option<Node>, String> {
        let outer = self.flags;
        let after = &self.rest[1..];
        let name = after
            .strip_prefix("?P<")
            .or_else(|| after.strip_prefix("?<").filter(|name| !name.starts_with(['=', '!'])));
        if let Some(name) = name {
            let (name, rest) = name.split_once('>').ok_or("a group's name has no `>`")?;
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if !is_name {
                return Err(format!("`{name}` is no name for a group"));
            }
            self.rest = rest;
        } else if after.starts_with('?') {
            self.skip(2);
            if self.set_flags()? {
                return Ok(None);
            }
        } else {
            self.skip(1);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups are nested more than {MAX_DEPTH} deep"));
        }
        let inner = self.alternation()?;
        self.rest = self.rest.strip_prefix(')').ok_or("`(` without `)`")?;
        self.depth -= 1;
        self.flags = outer;
        Ok(Some(Node { text: format!("(?:{})", inner.text), ..inner }))
    }

    /// After `(?`: flags and `)` (true) or `:` (false).
    fn set_flags(&mut self) -> Result<bool, String> {
        let (mut on, mut seen) = (true, true);
        loop {
            let flag = self.rest.chars().next();
            let wrong = || {
                let what = flag.map(String::from).unwrap_or_default();
                format!("`(?` with `{what}`: only the flags i, m, s, U and groups with names are known")
            };
            self.skip(flag.map_or(0, char::len_utf8));
            match flag {
                Some('i') => self.flags.fold = on,
                Some('m') => self.flags.multi_line = on,
                Some('s') => self.flags.dot_newline = on,
                Some('U') => {}
                Some('-') if on => {
                    (on, seen) = (false, false);
                    continue;
                }
                Some(end @ (':' | ')')) if seen => return Ok(end == ')'),
                _ => return Err(wrong()),
            }
            seen = true;
        }
    }

    /// After a backslash, outside of a class.
    fn escape(&mut self) -> Result<Vec<Node>, String> {
        let one = |node| Ok(vec![node]);
        match self.rest[1..].chars().next() {
            Some('b') => one(self.simple(2, r"(?-u:\b)")),
            Some('B') => one(self.simple(2, r"(?-u:\B)")),
            Some('A') => one(self.simple(2, r"\A")),
            Some('z') => one(self.simple(2, r"\z")),
            Some('C') => one(self.simple(2, r"(?s-u:.)")),
            Some('Q') => {
                let quoted = &self.rest[2..];
                let (text, rest) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
                self.rest = rest;
                Ok(text.chars().map(|character| self.text_of(character)).collect())
            }
            _ => {
                if let Some((class, length)) = Class::escaped(self.rest)? {
                    self.skip(length);
                    return one(node(class.text(self.flags.fold)));
                }
                let (code, length) = class::character(self.rest)?;
                self.skip(length);
                match char::from_u32(code) {
                    Some(character) => one(self.text_of(character)),
                    None => one(node(Class::range(code, code).text(false))),
                }
            }
        }
    }
}

fn node(text: String) -> Node {
    Node { text, repeats: 1, is_repetition: false }
}

/// Adds a branch to the text of an alternation.
fn close_branch(text: &mut String, nodes: &mut Vec<Node>) -> u32 {
    let repeats = nodes.iter().map(|node| node.repeats).max().unwrap_or(1);
    nodes.drain(..).for_each(|node| text.push_str(&node.text));
    repeats
}

/// Digits without a zero in front; RE2 takes the brace for a character otherwise.
fn count(text: &str) -> Option<u32> {
    let fits = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    fits.then(|| text.parse().ok()).flatten().filter(|count| *count < 100_000_000)
}
