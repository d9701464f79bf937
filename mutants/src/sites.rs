//! Where a file can be made wrong, and how. All of it is compiled in at once: a number, asked for at run time, decides which.

use std::ops::Range;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Block, Expr, Stmt};

/// One wrong line.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) number: usize,
    pub(crate) line: usize,
    pub(crate) what: &'static str,
    /// The line as it stands in the file.
    pub(crate) text: String,
    span: Range<usize>,
    before: String,
    after: String,
}

/// Finds the sites of a file, numbered from `first`. Of statements that follow each other, pairs are swapped; the pairs begin with the
/// first or the second, by `parity`.
pub(crate) fn find(source: &str, first: usize, path_to_switch: &str, parity: usize) -> syn::Result<Vec<Site>> {
    let mut finder = Finder { source, first, switch: path_to_switch, parity, sites: Vec::new() };
    finder.visit_file(&syn::parse_file(source)?);
    Ok(finder.sites)
}

/// Compiles the sites in. No line moves.
pub(crate) fn apply(source: &str, sites: &[Site]) -> String {
    // Outer ones are found before inner ones: they open first and close last.
    let opening = sites.iter().enumerate().map(|(i, site)| (site.span.start, 1, i as isize, &site.before));
    let closing = sites.iter().enumerate().map(|(i, site)| (site.span.end, 0, -(i as isize), &site.after));
    let mut edits: Vec<_> = opening.chain(closing).collect();
    edits.sort_unstable_by_key(|(at, kind, order, _)| (*at, *kind, *order));
    let (mut text, mut done) = (String::new(), 0);
    for (at, _, _, insert) in edits {
        text.push_str(&source[done..at]);
        text.push_str(insert);
        done = at;
    }
    text + &source[done..]
}

struct Finder<'a> {
    source: &'a str,
    first: usize,
    switch: &'a str,
    parity: usize,
    sites: Vec<Site>,
}

impl Finder<'_> {
    fn add(&mut self, what: &'static str, span: Range<usize>, make: impl FnOnce(&str) -> (String, String)) {
        let number = self.first + self.sites.len();
        let (before, after) = make(&format!("{}({number})", self.switch));
        let line = self.source[..span.start].matches('\n').count();
        let text = self.source.lines().nth(line).unwrap_or_default().trim().to_owned();
        self.sites.push(Site { number, line: line + 1, what, text, span, before, after });
    }

    /// The source of a range on one line; `None` where a comment would swallow the rest of it.
    fn on_one_line(&self, range: Range<usize>) -> Option<String> {
        let text = &self.source[range];
        (!text.contains("//")).then(|| text.replace('\n', " "))
    }

    fn condition(&mut self, condition: &Expr) {
        let operands = operands(condition);
        if !operands.iter().any(|it| matches!(it, Expr::Let(_))) {
            self.add("turned", condition.span().byte_range(), |on| ("((".into(), format!(") != {on})")));
        }
        for operand in operands.iter().filter(|it| operands.len() > 1 && !matches!(it, Expr::Let(_))) {
            self.add("dropped", operand.span().byte_range(), |on| ("((".into(), format!(") || {on})")));
        }
    }
}

/// The operands of a chain of `&&`.
fn operands(condition: &Expr) -> Vec<&Expr> {
    match condition {
        Expr::Binary(both) if matches!(both.op, BinOp::And(_)) => {
            [operands(&both.left), operands(&both.right)].concat()
        }
        other => vec![other],
    }
}

/// Tells whether a statement does something, and could be left out or come later.
fn has_effect(statement: &Stmt) -> bool {
    let Stmt::Expr(expression, Some(_)) = statement else { return false };
    match expression {
        Expr::Call(_) | Expr::MethodCall(_) | Expr::Try(_) => true,
        Expr::Binary(it) => !matches!(it.op, BinOp::Eq(_)),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if function.sig.constness.is_none() {
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if function.sig.constness.is_none() {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let range = |statement: &Stmt| statement.span().byte_range();
        for pair in block.stmts.get(self.parity..).unwrap_or_default().chunks_exact(2) {
            let [first, second] = pair else { continue };
            let texts = (self.on_one_line(range(first)), self.on_one_line(range(second)));
            if let (true, true, (Some(one), Some(two))) = (has_effect(first), has_effect(second), texts)
                && one != two
            {
                let span = range(first).start..range(second).end;
                self.add("swapped", span, |on| (format!("if {on} {{ {two} {one} }} else {{ "), " }".into()));
            }
        }
        for statement in &block.stmts {
            if has_effect(statement) {
                self.add("left out", range(statement), |on| (format!("if !{on} {{ "), " }".into()));
            }
            self.visit_stmt(statement);
        }
    }

    fn visit_expr_if(&mut self, branch: &'ast syn::ExprIf) {
        self.condition(&branch.cond);
        visit::visit_expr_if(self, branch);
    }

    fn visit_pat_guard(&mut self, guarded: &'ast syn::PatGuard) {
        let guard = &guarded.guard;
        if operands(guard).iter().all(|it| !matches!(it, Expr::Let(_))) {
            self.add("never", guard.span().byte_range(), |on| ("((".into(), format!(") && !{on})")));
        }
        visit::visit_pat_guard(self, guarded);
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        let other = match binary.op {
            BinOp::Lt(_) => Some("<="),
            BinOp::Le(_) => Some("<"),
            BinOp::Gt(_) => Some(">="),
            BinOp::Ge(_) => Some(">"),
            BinOp::Eq(_) => Some("!="),
            BinOp::Ne(_) => Some("=="),
            _ => None,
        };
        let sides =
            (self.on_one_line(binary.left.span().byte_range()), self.on_one_line(binary.right.span().byte_range()));
        if let (Some(other), (Some(left), Some(right))) = (other, sides) {
            self.add("compared otherwise", binary.span().byte_range(), |on| {
                (format!("(if {on} {{ {left} {other} {right} }} else {{ "), " })".into())
            });
        }
        visit::visit_expr_binary(self, binary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_and_no_line_moves() {
        let source = "fn f(a: u32) -> bool {\n    g(1)?;\n    h(2);\n    if a < 3 && a != 1 {\n        return true;\n    }\n    \
                      match a {\n        1 if x() => k(),\n        _ => false,\n    }\n}\n";
        let sites = find(source, 7, "switch", 0).unwrap();
        let kinds: Vec<_> = sites.iter().map(|site| (site.number, site.line, site.what)).collect();
        assert_eq!(
            kinds,
            [
                (7, 2, "swapped"),
                (8, 2, "left out"),
                (9, 3, "left out"),
                (10, 4, "turned"),
                (11, 4, "dropped"),
                (12, 4, "dropped"),
                (13, 4, "compared otherwise"),
                (14, 4, "compared otherwise"),
                (15, 8, "never"),
            ]
        );
        let text = apply(source, &sites);
        syn::parse_file(&text).unwrap();
        assert_eq!(text.lines().count(), source.lines().count());
        let two = "if switch(7) { h(2); g(1)?; } else { if !switch(8) { g(1)?; }\n    if !switch(9) { h(2); } }";
        assert!(text.contains(two), "{text}");
        let three = "((((if switch(13) { a <= 3 } else { a < 3 })) || switch(11))";
        assert!(text.contains(three), "{text}");
        assert_eq!(apply(source, &[]), source);
    }
}
