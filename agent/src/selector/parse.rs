//! Reads the selector language: tokens, and what they are put together to.

use std::collections::BTreeSet;

use super::{Comparison, Expression};

/// Parentheses and negations within each other, at most: deep enough for every hand and tool, shallow enough for the stack.
const MAX_DEPTH: usize = 64;

/// Bytes of a selector, at most.
const MAX_LENGTH: usize = 64 * 1024;

/// Why a selector is not understood. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Something else should stand there.
    #[error("selector {selector:?}: at character {position} stands {found}, where {expected} should")]
    Unexpected {
        /// The selector.
        selector: String,
        /// Where in it.
        position: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A quotation mark has no other.
    #[error(
        "selector {selector:?}: the string that begins at character {position} does not end; close it with {quote}"
    )]
    OpenString {
        /// The selector.
        selector: String,
        /// Where in it.
        position: usize,
        /// The quotation mark.
        quote: char,
    },
    /// Too many parentheses and negations within each other.
    #[error(
        "selector {selector:?}: more than {MAX_DEPTH} parentheses and negations within each other; simplify it"
    )]
    TooDeep {
        /// The selector.
        selector: String,
    },
    /// Too long to be meant.
    #[error("selector of {length} bytes; at most {MAX_LENGTH} are read")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// Reads a whole selector.
pub(super) fn expression(text: &str) -> Result<Expression, SelectorError> {
    if text.len() > MAX_LENGTH {
        return Err(SelectorError::TooLong { length: text.len() });
    }
    if text.trim().is_empty() {
        return Ok(Expression::All);
    }
    let mut parser = Parser {
        text,
        rest: text,
        depth: 0,
    };
    let expression = parser.any()?;
    parser.skip_white_space();
    if parser.rest.is_empty() {
        Ok(expression)
    } else {
        Err(parser.unexpected("&&, || or the end"))
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: usize,
}

/// What a label's name consists of, prefix included.
fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<Expression, SelectorError> {
        let mut terms = vec![self.all()?];
        while self.take("||") {
            terms.push(self.all()?);
        }
        Ok(single_or(terms, Expression::Or))
    }

    fn all(&mut self) -> Result<Expression, SelectorError> {
        let mut terms = vec![self.term()?];
        while self.take("&&") {
            terms.push(self.term()?);
        }
        Ok(single_or(terms, Expression::And))
    }

    fn term(&mut self) -> Result<Expression, SelectorError> {
        if self.take("!") {
            let inner = self.nested(Self::term)?;
            return Ok(Expression::Not(Box::new(inner)));
        }
        if self.take("(") {
            let inner = self.nested(Self::any)?;
            self.expect(")", ")")?;
            return Ok(inner);
        }
        let before = self.rest;
        let label = self.label("a label, has(…), all(), ! or (")?;
        match label {
            "all" if self.take("(") => self.expect(")", ")").map(|()| Expression::All),
            "global" if self.take("(") => self.expect(")", ")").map(|()| Expression::Global),
            "has" if self.take("(") => {
                let label = self.label("a label")?.to_owned();
                self.expect(")", ")")?;
                Ok(Expression::Has(label))
            }
            _ if self.peek_is('(') => {
                self.rest = before;
                Err(self.unexpected("a label, has(…), all() or global()"))
            }
            _ => {
                let comparison = self.comparison()?;
                Ok(Expression::Compare(label.to_owned(), comparison))
            }
        }
    }

    fn nested(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<Expression, SelectorError>,
    ) -> Result<Expression, SelectorError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let selector = self.text.to_owned();
            return Err(SelectorError::TooDeep { selector });
        }
        let expression = inner(self);
        self.depth -= 1;
        expression
    }

    fn comparison(&mut self) -> Result<Comparison, SelectorError> {
        const OPERATORS: &str = "==, !=, in, not in, contains, starts with or ends with";
        if self.take("==") {
            return self.string().map(Comparison::Equal);
        }
        if self.take("!=") {
            return self.string().map(Comparison::NotEqual);
        }
        let before = self.rest;
        match self.label(OPERATORS)? {
            "in" => self.set().map(Comparison::In),
            // Calico takes both words of an operator written together as well.
            "notin" => self.set().map(Comparison::NotIn),
            "not" if self.take_word("in") => self.set().map(Comparison::NotIn),
            "contains" => self.string().map(Comparison::Contains),
            "startswith" => self.string().map(Comparison::StartsWith),
            "starts" if self.take_word("with") => self.string().map(Comparison::StartsWith),
            "endswith" => self.string().map(Comparison::EndsWith),
            "ends" if self.take_word("with") => self.string().map(Comparison::EndsWith),
            _ => {
                self.rest = before;
                Err(self.unexpected(OPERATORS))
            }
        }
    }

    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.expect("{", "{")?;
        let mut values = BTreeSet::new();
        if self.take("}") {
            return Ok(values);
        }
        loop {
            values.insert(self.string()?);
            if self.take("}") {
                return Ok(values);
            }
            self.expect(",", ", or }")?;
        }
    }

    fn string(&mut self) -> Result<String, SelectorError> {
        const STRING: &str = "a string in quotation marks";
        self.skip_white_space();
        let Some(quote @ ('"' | '\'')) = self.rest.chars().next() else {
            return Err(self.unexpected(STRING));
        };
        let inside = self.rest.strip_prefix(quote).unwrap_or_default();
        let Some((string, rest)) = inside.split_once(quote) else {
            return Err(SelectorError::OpenString {
                selector: self.text.to_owned(),
                position: self.position(),
                quote,
            });
        };
        self.rest = rest;
        Ok(string.to_owned())
    }

    fn label(&mut self, expected: &'static str) -> Result<&'a str, SelectorError> {
        self.skip_white_space();
        let end = self.rest.find(|c| !is_label(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.unexpected(expected));
        }
        let (label, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(label)
    }

    /// Takes this word if it stands next, whole.
    fn take_word(&mut self, word: &'static str) -> bool {
        let before = self.rest;
        let taken = self.label(word).is_ok_and(|label| label == word);
        if !taken {
            self.rest = before;
        }
        taken
    }

    fn take(&mut self, symbol: &str) -> bool {
        self.skip_white_space();
        // `!=` without a label before it is no negation.
        let rest = self.rest.strip_prefix(symbol);
        let rest = rest.filter(|rest| symbol != "!" || !rest.starts_with('='));
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, symbol: &str, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(symbol) {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn peek_is(&mut self, c: char) -> bool {
        self.skip_white_space();
        self.rest.starts_with(c)
    }

    fn skip_white_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Characters before what comes next, and one.
    fn position(&self) -> usize {
        let before = self.text.len().saturating_sub(self.rest.len());
        self.text.get(..before).map_or(0, |text| text.chars().count()) + 1
    }

    fn unexpected(&mut self, expected: &'static str) -> SelectorError {
        self.skip_white_space();
        let word: String = self.rest.chars().take_while(|c| is_label(*c)).take(64).collect();
        let found = match self.rest.chars().next() {
            None => "the end".to_owned(),
            Some(c) if word.is_empty() => format!("{c:?}"),
            Some(_) => format!("{word:?}"),
        };
        SelectorError::Unexpected {
            selector: self.text.to_owned(),
            position: self.position(),
            found,
            expected,
        }
    }
}

fn single_or(mut terms: Vec<Expression>, several: impl FnOnce(Vec<Expression>) -> Expression) -> Expression {
    match terms.pop() {
        Some(only) if terms.is_empty() => only,
        last => {
            terms.extend(last);
            several(terms)
        }
    }
}
