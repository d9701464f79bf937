//! The copy in which wrong lines are compiled, and the tests of it.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::TestTarget;
use crate::sites::{self, Site};

/// What tells a program which line is to be wrong.
const SWITCH: &str = "VHD_MUTANT";

/// The target of a package's unit tests.
pub(crate) const UNIT: &str = "lib";

/// A copy of the repository as it stands.
pub(crate) struct Copy {
    root: PathBuf,
    tree: PathBuf,
    build: PathBuf,
}

impl Copy {
    /// Copies what git knows, or would add. Files that are the same stay, so that they need not be built again.
    pub(crate) fn of(root: &Path) -> Result<Self, Box<dyn Error>> {
        let place = root.join("target/mutants");
        let copy = Self { root: root.into(), tree: place.join("tree"), build: place.join("build") };
        let list = Command::new("git")
            .current_dir(root)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()?;
        for name in String::from_utf8(list.stdout)?.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (root.join(name), copy.tree.join(name));
            let Ok(bytes) = fs::read(&from) else { continue };
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&copy.tree))?;
            fs::copy(&from, &to)?;
        }
        // Peers that the tests compare with are looked for there.
        let peers = copy.tree.join("target/test-python");
        if fs::symlink_metadata(&peers).is_err() {
            fs::create_dir_all(copy.tree.join("target"))?;
            symlink(root.join("target/test-python"), peers)?;
        }
        Ok(copy)
    }

    /// Lists the source files that paths name, or that are in folders that they name, tests left out.
    pub(crate) fn files(&self, paths: &[&str]) -> Result<Vec<PathBuf>, Box<dyn Error>> {
        let mut found = Vec::new();
        for path in paths {
            let full = self.root.join(path);
            if full.is_dir() {
                let mut names: Vec<_> =
                    fs::read_dir(full)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_, std::io::Error>>()?;
                names.sort();
                let names = names.iter().map(|name| Path::new(path).join(name));
                found.extend(
                    names.filter(|it| it.extension().is_some_and(|it| it == "rs") && !it.ends_with("tests.rs")),
                );
            } else {
                found.push(path.into());
            }
        }
        Ok(found)
    }

    pub(crate) fn original(&self, file: &Path) -> Result<String, Box<dyn Error>> {
        Ok(fs::read_to_string(self.root.join(file))?)
    }

    fn write(&self, file: &Path, text: &str) -> std::io::Result<()> {
        let path = self.tree.join(file);
        if fs::read_to_string(&path).is_ok_and(|there| there == text) { Ok(()) } else { fs::write(path, text) }
    }
}

/// The built tests.
pub(crate) struct Tests {
    tree: PathBuf,
    executables: HashMap<(String, String), PathBuf>,
}

impl Tests {
    /// Compiles the sites in, leaves out those that do not compile, and counts these.
    pub(crate) fn build(
        copy: &Copy,
        sites: &mut [(PathBuf, Vec<Site>, usize)],
        targets: &[TestTarget],
    ) -> Result<(Self, usize), Box<dyn Error>> {
        let library = Path::new("vhd-core/src/lib.rs");
        let switch = format!(
            "\n/// Tells whether the line of this number is to be wrong.\n#[doc(hidden)]\npub fn mutant(number: u32) -> bool {{\n    \
             static CHOSEN: std::sync::LazyLock<Option<u32>> = std::sync::LazyLock::new(|| std::env::var({SWITCH:?}).ok()?.parse().ok());\n    \
             *CHOSEN == Some(number)\n}}\n"
        );
        copy.write(library, &(copy.original(library)? + &switch))?;
        let mut unviable = 0;
        loop {
            for (file, found, _) in sites.iter() {
                copy.write(file, &sites::apply(&copy.original(file)?, found))?;
            }
            let mut executables = HashMap::new();
            let mut bad: BTreeSet<(PathBuf, usize)> = BTreeSet::new();
            let mut errors = String::new();
            let mut command = Command::new("cargo");
            command.current_dir(&copy.tree).env("CARGO_TARGET_DIR", &copy.build).args([
                "test",
                "--workspace",
                "--locked",
                "--no-run",
                "--message-format=json",
            ]);
            let names: BTreeSet<&str> = targets.iter().map(|(_, target, _)| *target).collect();
            for name in names {
                if name == UNIT {
                    command.arg("--lib")
                } else {
                    command.args(["--test", name])
                };
            }
            let output = command.stderr(Stdio::inherit()).output()?;
            for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
                read_message(&copy.tree, &serde_json::from_slice(line)?, &mut executables, &mut bad, &mut errors);
            }
            if bad.is_empty() && errors.is_empty() {
                return Ok((Self { tree: copy.tree.clone(), executables }, unviable));
            }
            let before = unviable;
            for (file, found, _) in sites.iter_mut() {
                let count = found.len();
                found.retain(|site| !bad.contains(&(file.clone(), site.line)));
                unviable += count - found.len();
            }
            if unviable == before {
                return Err(format!("the copy does not compile:\n{errors}").into());
            }
        }
    }

    /// Runs a target as it is: what fails without a wrong line tells nothing.
    pub(crate) fn check_sound(&self, target: TestTarget) -> Result<(), Box<dyn Error>> {
        match self.run(target, None)? {
            None => Ok(()),
            Some(test) => Err(format!("{} {}: fails without a wrong line: {test}", target.0, target.1).into()),
        }
    }

    /// Runs the tests with one line wrong; gives the first that fails.
    pub(crate) fn first_to_notice(
        &self,
        number: usize,
        targets: &[TestTarget],
    ) -> Result<Option<String>, Box<dyn Error>> {
        for target in targets {
            if let Some(test) = self.run(*target, Some(number))? {
                return Ok(Some(test));
            }
        }
        Ok(None)
    }

    fn run(
        &self,
        (package, target, filters): TestTarget,
        number: Option<usize>,
    ) -> Result<Option<String>, Box<dyn Error>> {
        let key = (package.to_owned(), target.to_owned());
        let executable =
            self.executables.get(&key).ok_or_else(|| format!("no test {target} of {package} was built"))?;
        let log = self.tree.join("../log");
        let mut command = Command::new(executable);
        command
            .current_dir(self.tree.join(package))
            .env("CARGO_MANIFEST_DIR", self.tree.join(package))
            .env("RUST_BACKTRACE", "0")
            .args(filters)
            .args(["--format", "pretty"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(Stdio::null())
            // What it starts ends with it.
            .process_group(0);
        match number {
            Some(number) => command.env(SWITCH, number.to_string()),
            None => command.env_remove(SWITCH),
        };
        let status = wait(command.spawn()?, &log)?;
        let (went_well, failed) = status;
        Ok((!went_well).then_some(failed))
    }
}

/// The longest that one run may take, wrong lines that never end included.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until tests have ended, or one has failed; tells whether all went well, and which did not.
fn wait(mut child: Child, log: &Path) -> Result<(bool, String), Box<dyn Error>> {
    let start = Instant::now();
    let failed = || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("test ") && line.ends_with("FAILED"));
        line.and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
    };
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break status.success().then_some(());
        }
        if failed().is_some() || start.elapsed() > PATIENCE {
            // Its group: tests start programs.
            kill_process_group(Pid::from_child(&child), Signal::KILL)?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let what = failed().unwrap_or_else(|| "it did not end, or died".into());
    Ok((ended.is_some(), what))
}

fn read_message(
    tree: &Path,
    message: &Value,
    executables: &mut HashMap<(String, String), PathBuf>,
    bad: &mut BTreeSet<(PathBuf, usize)>,
    errors: &mut String,
) {
    let target = &message["target"];
    let source = Path::new(target["src_path"].as_str().unwrap_or_default()).strip_prefix(tree);
    if let (Some(path), Ok(source)) = (message["executable"].as_str(), source)
        && let Some(package) = source.iter().next()
    {
        let name = match target["kind"][0].as_str() {
            Some("test") => target["name"].as_str(),
            Some("lib") => Some(UNIT),
            _ => None,
        };
        if let Some(name) = name {
            executables.insert((package.to_string_lossy().into_owned(), name.to_owned()), path.into());
        }
    }
    let diagnostic = &message["message"];
    if message["reason"] == "compiler-message" && diagnostic["level"] == "error" {
        errors.push_str(diagnostic["rendered"].as_str().unwrap_or_default());
        for span in diagnostic["spans"].as_array().into_iter().flatten() {
            let line = span["line_start"].as_u64().unwrap_or_default() as usize;
            bad.insert((span["file_name"].as_str().unwrap_or_default().into(), line));
        }
    }
}
