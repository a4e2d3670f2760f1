//! What repeated measurements amount to, and how it is printed.

use std::fmt;

/// Repeated measurements of one thing: never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    sorted: Vec<f64>,
}

impl Figures {
    /// `None` without a measurement. One that is no number counts as the largest.
    pub fn new(measured: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = measured.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then_some(Self { sorted })
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.at(0)
    }

    /// The middle one; the upper of the two middle ones of an even number.
    pub fn median(&self) -> f64 {
        self.at(self.sorted.len() / 2)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.at(self.sorted.len() - 1)
    }

    fn at(&self, index: usize) -> f64 {
        self.sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    /// `median (min - max)`, with so many digits behind the point.
    pub fn spread(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$} - {:.digits$})", self.median(), self.min(), self.max())
    }

    /// How many times the median of `other` this median is: `1.25x`.
    pub fn times(&self, other: &Self) -> String {
        format!("{:.2}x", self.median() / other.median())
    }
}

/// A table of text: the first column to the left, the others to the right.
#[derive(Debug)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one under `title` and these heads of its columns.
    pub fn new(title: impl Into<String>, heads: &[&str]) -> Self {
        Self { title: title.into(), rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a row. Missing cells stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        writeln!(f, "{}", self.title)?;
        for row in &self.rows {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                match column {
                    0 => line.push_str(&format!("  {cell:<width$}")),
                    _ => line.push_str(&format!("   {cell:>width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        let figures = Figures::new([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((figures.min(), figures.median(), figures.max()), (1.0, 2.0, 3.0));
        assert_eq!(figures.spread(1), "2.0 (1.0 - 3.0)");
        assert_eq!(figures.times(&Figures::new([4.0]).unwrap()), "0.50x");
        assert_eq!(Figures::new([]), None);
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new("T", &["what", "n"]);
        table.row(["a".to_owned(), "100".to_owned()]);
        table.row(["long name".to_owned()]);
        assert_eq!(table.to_string(), "T\n  what          n\n  a           100\n  long name\n");
    }
}
