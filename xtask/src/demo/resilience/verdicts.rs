//! The table at the end: what was measured without policies and with them, and whether it holds.

use super::super::screen::Screen;

#[derive(Debug, Default)]
pub(super) struct Verdicts(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    off: String,
    on: String,
    wanted: String,
    /// None: nothing is wanted of it.
    holds: Option<bool>,
}

impl Verdicts {
    pub(super) fn add(&mut self, what: &str, off: String, on: String, wanted: String, holds: bool) {
        self.0.push(Row { what: what.to_owned(), off, on, wanted, holds: Some(holds) });
    }

    /// A number that belongs to the picture.
    pub(super) fn note(&mut self, what: &str, off: String, on: String) {
        let wanted = String::new();
        self.0.push(Row { what: what.to_owned(), off, on, wanted, holds: None });
    }

    /// Whether everything holds.
    pub(super) fn show(&self, screen: &mut Screen) -> bool {
        screen.say("");
        for line in self.lines() {
            screen.say(&line);
        }
        let failed = self.0.iter().filter(|row| row.holds == Some(false)).count();
        screen.say("");
        screen.say(&match failed {
            0 => "everything holds".to_owned(),
            failed => format!("{failed} of the lines above do not hold"),
        });
        failed == 0
    }

    fn lines(&self) -> Vec<String> {
        let head = Row {
            what: "WHAT".to_owned(),
            off: "OFF".to_owned(),
            on: "ON".to_owned(),
            wanted: "WANTED".to_owned(),
            holds: None,
        };
        let rows: Vec<&Row> = std::iter::once(&head).chain(&self.0).collect();
        let width = |of: fn(&Row) -> &str| {
            rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0)
        };
        let (what, off) = (width(|row| &row.what), width(|row| &row.off));
        let (on, wanted) = (width(|row| &row.on), width(|row| &row.wanted));
        let lines = rows.iter().map(|row| {
            let verdict = match row.holds {
                None => "",
                Some(true) => "holds",
                Some(false) => "DOES NOT HOLD",
            };
            let line = format!(
                "{:<what$}  {:<off$}  {:<on$}  {:<wanted$}  {verdict}",
                row.what, row.off, row.on, row.wanted
            );
            line.trim_end().to_owned()
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut verdicts = Verdicts::default();
        let text = str::to_owned;
        verdicts.add("amplification", text("27.0"), text("1.2"), text("at most 1.3"), true);
        verdicts.note("CPU", text("60 %"), text("41 %"));
        assert_eq!(
            verdicts.lines(),
            [
                "WHAT           OFF   ON    WANTED",
                "amplification  27.0  1.2   at most 1.3  holds",
                "CPU            60 %  41 %",
            ]
        );
    }
}
