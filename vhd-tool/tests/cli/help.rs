use clap::CommandFactory;

use crate::program::done;

#[test]
fn every_subcommand_has_an_example_that_it_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for subcommand in vhd_tool::Cli::command().get_subcommands() {
        let name = subcommand.get_name();
        if name == "vhd-util" {
            // The help of another program, which has it that to ask for help is wrong.
            continue;
        }
        let help = done(folder.path(), &[name, "--help"]);
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{name} has no example: {help}"));
        let prefix = format!("vhd-tool {name} ");
        let lines: Vec<&str> = examples.lines().map(str::trim).filter(|line| line.starts_with(&prefix)).collect();
        assert!(!lines.is_empty(), "{name} has no example: {help}");
        for line in lines {
            // Up to where the shell takes over.
            let words = line.split_whitespace().take_while(|word| !["<", ">", "|"].contains(word));
            let parsed = vhd_tool::Cli::command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        seen += 1;
    }
    assert_eq!(seen, 23);
}

#[test]
fn the_top_level_documents_every_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let help = done(folder.path(), &["--help"]);
    let (_, codes) = help.split_once("Exit codes:").unwrap();
    for code in [0, 1, 2, 3, 4, 5, 124] {
        assert!(codes.contains(&format!("\n  {code}  ")), "{code} in {codes}");
    }
}

#[test]
fn the_definition_is_sound() {
    vhd_tool::Cli::command().debug_assert();
}
