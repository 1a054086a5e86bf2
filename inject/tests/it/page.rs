//! Whether docs/injection.md shows the table of annotations that the code has.

use outrigger_inject::ANNOTATIONS;

#[test]
fn the_page_lists_every_annotation_and_no_other() {
    let page = include_str!("../../../docs/injection.md");
    let rows: Vec<String> = ANNOTATIONS
        .iter()
        .map(|one| format!("| `outrigger.dev/{}` | {} | {} |", one.name, one.values, one.meaning))
        .collect();
    let shown: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `outrigger.dev/")).collect();
    assert_eq!(shown, rows, "make the table of docs/injection.md this:\n{}", rows.join("\n"));
}
