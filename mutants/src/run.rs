//! The copy in which wrong lines are compiled, and the tests of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::TestTarget;
use crate::sites::{self, Site};

/// What tells a program which line is to be wrong.
const SWITCH: &str = "VHD_MUTANT";

/// What tells a program where to write down which lines it reaches.
const REACHED: &str = "VHD_MUTANTS_REACHED";

/// What is appended to the library. Lines ask it whether they are to be wrong.
const SWITCHBOARD: &str = r#"
/// Tells whether the line of this number is to be wrong.
#[doc(hidden)]
pub fn mutant(number: u32) -> bool {
    use std::io::Write;
    use std::sync::{LazyLock, Mutex};
    type Reached = (std::collections::HashSet<u32>, std::fs::File);
    static CHOSEN: LazyLock<Option<u32>> = LazyLock::new(|| std::env::var("VHD_MUTANT").ok()?.parse().ok());
    static REACHED: LazyLock<Option<Mutex<Reached>>> = LazyLock::new(|| {
        let path = std::env::var_os("VHD_MUTANTS_REACHED")?;
        let file = std::fs::File::options().append(true).create(true).open(path).ok()?;
        Some(Mutex::new((std::collections::HashSet::new(), file)))
    });
    if let Some(reached) = &*REACHED
        && let Ok(mut reached) = reached.lock()
        && reached.0.insert(number)
    {
        let _ = reached.1.write_all(format!("{number}\n").as_bytes());
    }
    *CHOSEN == Some(number)
}
"#;

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

/// One test, and what it does where no line is wrong.
struct Test {
    package: &'static str,
    executable: PathBuf,
    name: String,
    takes: Duration,
    reaches: HashSet<usize>,
}

/// Which tests reach which lines.
pub(crate) struct Reach {
    tree: PathBuf,
    /// The quickest first.
    tests: Vec<Test>,
}

impl Tests {
    /// Compiles the sites in, leaves out those that do not compile, and counts these.
    pub(crate) fn build(
        copy: &Copy,
        sites: &mut [(PathBuf, Vec<Site>, usize)],
        targets: &[TestTarget],
    ) -> Result<(Self, usize), Box<dyn Error>> {
        let library = Path::new("vhd-core/src/lib.rs");
        copy.write(library, &(copy.original(library)? + SWITCHBOARD))?;
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

    /// Runs each test as it is, and finds which lines it reaches.
    pub(crate) fn reach(&self, targets: &[TestTarget]) -> Result<Reach, Box<dyn Error>> {
        let mut tests: Vec<Test> = Vec::new();
        for (package, target, filters) in targets {
            let key = ((*package).to_owned(), (*target).to_owned());
            let executable =
                self.executables.get(&key).ok_or_else(|| format!("no test {target} of {package} was built"))?;
            let list = Command::new(executable).args(*filters).args(["--list", "--format", "terse"]).output()?;
            for name in String::from_utf8(list.stdout)?.lines().filter_map(|line| line.strip_suffix(": test")) {
                if !tests.iter().any(|test| test.executable == *executable && test.name == name) {
                    tests.push(Test {
                        package,
                        executable: executable.clone(),
                        name: name.into(),
                        takes: MOST,
                        reaches: HashSet::new(),
                    });
                }
            }
        }
        let queue = Mutex::new(tests.iter_mut());
        let failed: Vec<String> = in_parallel(|number| {
            let mut failed = Vec::new();
            let reached = self.tree.join(format!("../reached{number}"));
            while let Some(test) = next(&queue) {
                let start = Instant::now();
                let _ = fs::remove_file(&reached);
                let went_well = test.run(&self.tree, |command| command.env(REACHED, &reached));
                test.takes = start.elapsed();
                let lines = fs::read_to_string(&reached).unwrap_or_default();
                test.reaches = lines.lines().filter_map(|line| line.parse().ok()).collect();
                if !went_well.is_ok_and(|it| it) {
                    failed.push(format!("{} {}", test.package, test.name));
                }
            }
            failed
        });
        if !failed.is_empty() {
            return Err(format!("these fail without a wrong line: {}", failed.join(", ")).into());
        }
        tests.sort_by_key(|test| test.takes);
        Ok(Reach { tree: self.tree.clone(), tests })
    }
}

impl Reach {
    /// Runs the tests that reach a line with that line wrong; gives the first that fails.
    pub(crate) fn first_to_notice(&self, number: usize) -> std::io::Result<Option<&str>> {
        for test in self.tests.iter().filter(|test| test.reaches.contains(&number)) {
            if !test.run(&self.tree, |command| command.env(SWITCH, number.to_string()))? {
                return Ok(Some(&test.name));
            }
        }
        Ok(None)
    }

    /// Counts the tests that reach a line.
    pub(crate) fn count(&self, number: usize) -> usize {
        self.tests.iter().filter(|test| test.reaches.contains(&number)).count()
    }
}

impl Test {
    /// Tells whether it goes well.
    fn run(&self, tree: &Path, with: impl FnOnce(&mut Command) -> &mut Command) -> std::io::Result<bool> {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(tree.join(self.package))
            .env("CARGO_MANIFEST_DIR", tree.join(self.package))
            .env("RUST_BACKTRACE", "0")
            // One of so many crash states shows what all show.
            .env("SHARE", "8")
            .env_remove(SWITCH)
            .args(["--exact", &self.name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What it starts ends with it.
            .process_group(0);
        let mut child = with(&mut command).spawn()?;
        let end = Instant::now() + MOST.min(self.takes * 10 + Duration::from_secs(30));
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() > end {
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The longest that one test may take, wrong lines that never end included.
const MOST: Duration = Duration::from_secs(600);

/// Tests wait more than they compute: this many run at a time.
const JOBS: usize = 4;

/// Does work in several threads, each with its number, and collects what they give.
pub(crate) fn in_parallel<T: Send>(work: impl Fn(usize) -> Vec<T> + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..JOBS)
            .map(|number| {
                scope.spawn({
                    let work = &work;
                    move || work(number)
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it does not panic")).collect()
    })
}

/// Takes the next of what several threads share.
pub(crate) fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
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
