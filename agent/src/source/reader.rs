//! Reads the folder again and again, keeping for each file what it last said that made sense.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use policy::Problem;
use serde::de::DeserializeOwned;

use super::files::Files;
use super::manifest::{self, Parsed};
use super::status::{self, NodeStatus, PodStatus};
use super::{PodName, Records};
use crate::config::is_object_name;

/// Files that are read as manifests.
const MANIFESTS: &[&str] = &[".yaml", ".yml", ".json"];
/// Files that agents write.
const STATUS: &[&str] = &[".json"];

/// The folder as it was last read.
pub(super) struct Reader {
    manifests: Files<Parsed>,
    nodes: Files<NodeStatus>,
    pods: Files<PodStatus>,
    /// Why the newest listing is not taken.
    trouble: Option<String>,
    has_read: bool,
    settle: Duration,
    /// Where it is recorded which manifests were ever taken, and what stands there.
    record: Option<PathBuf>,
    taken: BTreeSet<String>,
}

impl Reader {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            manifests: Files::new(folder.to_owned(), MANIFESTS),
            nodes: Files::new(folder.join(status::NODES), STATUS),
            pods: Files::new(folder.join(status::PODS), STATUS),
            trouble: None,
            has_read: false,
            settle: Duration::ZERO,
            record: None,
            taken: BTreeSet::new(),
        }
    }

    /// A file that changed less than `settle` ago is left alone until it is touched, or that time is over: its writer
    /// may be in the midst of it, and half a manifest may allow what the whole one denies.
    pub(super) fn settling(self, settle: Duration) -> Self {
        Self { settle, ..self }
    }

    /// Records in `file` which manifests were taken. The last good version of one that was broken since is lost with the
    /// process that read it; a reader that starts with such a file reads nothing, for a policy must not vanish.
    pub(super) fn recording(self, file: PathBuf) -> Self {
        let taken = fs::read(&file).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Self { record: Some(file), taken: taken.unwrap_or_default(), ..self }
    }

    /// Whether files were left alone that are to be looked at soon.
    pub(super) fn is_waiting(&self) -> bool {
        self.manifests.unsettled || self.nodes.unsettled || self.pods.unsettled
    }

    /// Reads what has changed, and the files in `touched` in any case. `None` if nothing was ever read.
    pub(super) fn read(&mut self, touched: &HashSet<OsString>) -> Option<Records> {
        self.trouble = self.read_folders(touched).err();
        if let (Some(why), false) = (&self.trouble, self.has_read) {
            // Later it is a problem among the others, which `mesh-ctl status` and the log show.
            tracing::warn!(folder = %self.manifests.folder.display(), why, "manifests cannot be read");
        }
        self.has_read.then(|| self.records())
    }

    fn read_folders(&mut self, touched: &HashSet<OsString>) -> Result<(), String> {
        let manifests = self.manifests.list()?;
        // Nobody deletes the last Node from a cluster; an unmounted or half-copied folder looks just like this.
        if manifests.found.is_empty() {
            return Err(format!("no manifest in it (a file whose name ends with {})", MANIFESTS.join(", ")));
        }
        // The first time nothing is known that could stay as it is.
        let settle = if self.has_read { self.settle } else { Duration::ZERO };
        self.manifests.read(manifests, touched, (settle, settle), manifest::parse);
        if !self.has_read {
            self.refuse_broken()?;
        }
        self.has_read = true;
        self.record_taken();
        // Without these folders nobody has announced anything yet, or they are gone for a moment.
        if let Ok(nodes) = self.nodes.list() {
            self.nodes.read(nodes, touched, (settle, Duration::ZERO), read_json);
        }
        if let Ok(pods) = self.pods.list() {
            self.pods.read(pods, touched, (settle, Duration::ZERO), read_json);
        }
        Ok(())
    }

    fn refuse_broken(&self) -> Result<(), String> {
        for (name, file) in &self.manifests.files {
            if let (Some(why), true) = (&file.error, self.taken.contains(name)) {
                return Err(format!(
                    "{name} was in force and cannot be read now, correct or delete it: {why}"
                ));
            }
        }
        Ok(())
    }

    fn record_taken(&mut self) {
        let Some(record) = &self.record else { return };
        let taken: BTreeSet<String> = self.manifests.contents().map(|(name, _)| name.clone()).collect();
        if taken == self.taken {
            return;
        }
        let json = serde_json::to_vec(&taken).unwrap_or_default();
        match host::file::write(record, &json, 0o600) {
            Ok(()) => self.taken = taken,
            Err(error) => tracing::warn!(%error, "not recorded which manifests are in force"),
        }
    }

    fn records(&self) -> Records {
        let mut records = Records::default();
        let mut problems = Vec::new();
        if let Some(why) = &self.trouble {
            let location = self.manifests.folder.display().to_string();
            problems.push(Problem { location, message: format!("{why}; keeping what was read before") });
        }
        for (name, file) in &self.manifests.files {
            let Some(parsed) = &file.content else { continue };
            for object in &parsed.objects {
                if let Some(twice) = object.add_to(&mut records) {
                    let message =
                        format!("{twice} stands in another file (or twice in this one); the first counts");
                    problems.push(Problem { location: name.clone(), message });
                }
            }
            let unknown = parsed.unknown.iter();
            problems.extend(
                unknown
                    .map(|(what, why)| Problem { location: format!("{name}: {what}"), message: why.clone() }),
            );
        }
        for (file, status) in self.nodes.contents() {
            records.node_status.insert(self.nodes.stem(file).to_owned(), status.clone());
        }
        for (file, status) in self.pods.contents() {
            let name = self.pods.stem(file).split_once('_');
            if let Some((namespace, name)) = name.filter(|(a, b)| is_object_name(a) && is_object_name(b)) {
                records.pod_status.insert(PodName::new(namespace, name), status.clone());
            }
        }
        self.manifests.errors(&mut problems);
        self.manifests.report_ignored(&mut problems);
        self.nodes.errors(&mut problems);
        self.pods.errors(&mut problems);
        records.problems = problems;
        records.files = self.manifests.versions().collect();
        records
    }
}

fn read_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.1.0.0/16}\n";

    fn pod(name: &str) -> String {
        format!("kind: Pod\nmetadata: {{name: {name}}}\nspec: {{}}\n")
    }

    struct Fixture {
        folder: tempfile::TempDir,
        reader: Reader,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join(status::NODES)).unwrap();
            fs::create_dir_all(folder.path().join(status::PODS)).unwrap();
            let reader = Reader::new(folder.path());
            let fixture = Self { folder, reader };
            fixture.write("node.yaml", NODE);
            fixture
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.folder.path().join(name)).unwrap();
        }

        fn read(&mut self) -> Records {
            self.reader.read(&HashSet::new()).unwrap()
        }

        fn pods(&mut self) -> Vec<String> {
            self.read().pods.keys().map(|name| name.name.clone()).collect()
        }
    }

    #[test]
    fn objects_come_change_and_go_with_their_files() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &pod("one"));
        fixture.write("b.yaml", &format!("{}---\n{}", pod("two"), pod("three")));
        fixture.write(".hidden.yaml", &pod("hidden"));
        assert_eq!(fixture.pods(), ["one", "three", "two"]);
        fixture.write("b.yaml", &pod("four"));
        fixture.remove("a.yaml");
        assert_eq!(fixture.pods(), ["four"]);
        assert_eq!(fixture.read().problems, []);
    }

    #[test]
    fn every_suffix_of_a_manifest_is_read_and_what_is_none_is_named() {
        let mut fixture = Fixture::new();
        fixture.write("a.yml", &pod("one"));
        // Tabs and surrogates: what is JSON and not everybody's YAML.
        fixture.write(
            "b.json",
            "{\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"two\", \"labels\": {\"x\": \"\\ud83d\\ude00\"}},\n\t\"spec\": {}\n}\n",
        );
        for ignored in ["notes.txt", "policy.yaml.disabled", "README"] {
            fixture.write(ignored, "no manifest");
        }
        for silent in ["a.yml~", "b.yaml.swp", "#c.yaml#", "d.yaml.bak", ".notes.txt"] {
            fixture.write(silent, "no manifest");
        }
        fs::create_dir(fixture.folder.path().join("folder")).unwrap();
        assert_eq!(fixture.pods(), ["one", "two"]);
        let records = fixture.read();
        let locations: Vec<_> = records.problems.iter().map(|p| p.location.as_str()).collect();
        assert_eq!(locations, ["README", "notes.txt", "policy.yaml.disabled"]);
        assert!(records.problems[0].message.contains(".yml"), "{:?}", records.problems);
        fixture.remove("a.yml");
        fixture.write("b.json", "{\"kind\": \"Pod\", \"metadata\": {\"name\": \"a\", \"name\": \"b\"}}");
        assert_eq!(fixture.pods(), ["two"], "a name that is given twice could be read in two ways");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_deletion() {
        let mut fixture = Fixture::new();
        let mounted = fixture.folder.path().join("status/policy");
        fs::write(&mounted, pod("one")).unwrap();
        std::os::unix::fs::symlink(&mounted, fixture.folder.path().join("a.yaml")).unwrap();
        assert_eq!(fixture.pods(), ["one"]);
        fs::remove_file(&mounted).unwrap();
        let records = fixture.read();
        assert_eq!((records.pods.len(), records.problems.len()), (1, 1), "{:?}", records.problems);
        fixture.remove("a.yaml");
        assert_eq!(fixture.pods(), [""; 0]);
    }

    #[test]
    fn a_file_that_does_not_parse_keeps_its_last_good_objects() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &pod("one"));
        fixture.write("never.yaml", "{");
        assert_eq!(fixture.pods(), ["one"]);
        fixture.write("a.yaml", "kind: [unfinished");
        let records = fixture.read();
        assert_eq!(records.pods.len(), 1);
        let locations: Vec<_> = records.problems.iter().map(|p| p.location.as_str()).collect();
        assert_eq!(locations, ["a.yaml", "never.yaml"]);
        fixture.write("a.yaml", &pod("two"));
        fixture.remove("never.yaml");
        assert_eq!(fixture.pods(), ["two"]);
        assert_eq!(fixture.read().problems, []);
    }

    #[test]
    fn a_file_that_was_in_force_is_not_left_out_after_a_restart() {
        let mut fixture = Fixture::new();
        let record = fixture.folder.path().join("record");
        fixture.reader = Reader::new(fixture.folder.path()).recording(record.clone());
        fixture.write("a.yaml", &pod("one"));
        fixture.write("never.yaml", "{");
        assert_eq!(fixture.pods(), ["one"]);
        fixture.write("a.yaml", "kind: [unfinished");
        assert_eq!(fixture.pods(), ["one"]);

        fixture.reader = Reader::new(fixture.folder.path()).recording(record.clone());
        assert!(fixture.reader.read(&HashSet::new()).is_none(), "its last good version is lost");
        fixture.write("a.yaml", &pod("two"));
        assert_eq!(fixture.pods(), ["two"], "never.yaml was never in force");

        fixture.write("a.yaml", "kind: [unfinished");
        fixture.reader = Reader::new(fixture.folder.path()).recording(record);
        fixture.remove("a.yaml");
        assert_eq!(fixture.pods(), [""; 0]);
    }

    #[test]
    fn a_file_in_the_midst_of_being_written_is_left_alone() {
        let mut fixture = Fixture::new();
        fixture.reader = Reader::new(fixture.folder.path()).settling(Duration::from_secs(60));
        fixture.write("a.yaml", &pod("one"));
        assert_eq!(fixture.pods(), ["one"], "the first reading takes what is there");
        fixture.write("a.yaml", "");
        fixture.write("b.yaml", &pod("two"));
        assert_eq!(fixture.pods(), ["one"]);
        assert!(fixture.reader.is_waiting());
        let both = HashSet::from(["a.yaml".into(), "b.yaml".into()]);
        let records = fixture.reader.read(&both).unwrap();
        let names: Vec<_> = records.pods.keys().map(|name| name.name.as_str()).collect();
        assert_eq!((names, records.problems.len()), (vec!["one", "two"], 1), "an empty file says nothing");
        assert!(!fixture.reader.is_waiting());
    }

    #[test]
    fn a_file_that_is_away_for_a_moment_is_not_deleted() {
        let mut fixture = Fixture::new();
        let settle = Duration::from_millis(300);
        fixture.reader = Reader::new(fixture.folder.path()).settling(settle);
        fixture.write("a.yaml", &pod("one"));
        assert_eq!(fixture.pods(), ["one"]);
        // As git and editors do: away, there again, not yet written.
        fixture.remove("a.yaml");
        assert_eq!(fixture.pods(), ["one"]);
        assert!(fixture.reader.is_waiting());
        fixture.write("a.yaml", "");
        assert_eq!(fixture.pods(), ["one"]);
        fixture.write("a.yaml", &pod("two"));
        assert_eq!(fixture.reader.read(&HashSet::from(["a.yaml".into()])).unwrap().pods.len(), 1);
        fixture.remove("a.yaml");
        assert_eq!(fixture.pods(), ["two"]);
        std::thread::sleep(settle);
        assert_eq!(fixture.pods(), [""; 0], "gone for good");
    }

    #[test]
    fn the_first_file_wins_when_an_object_is_given_twice() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", "kind: Pod\nmetadata: {name: p, labels: {from: a}}\nspec: {}\n");
        fixture.write("b.yaml", "kind: Pod\nmetadata: {name: p, labels: {from: b}}\nspec: {}\n");
        let records = fixture.read();
        assert_eq!(records.pods.values().next().unwrap().labels["from"], "a");
        assert_eq!(records.problems.len(), 1);
        assert!(records.problems[0].location == "b.yaml", "{:?}", records.problems);
        fixture.remove("a.yaml");
        assert_eq!(fixture.read().pods.values().next().unwrap().labels["from"], "b");
    }

    #[test]
    fn an_empty_or_missing_folder_deletes_nothing() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &pod("one"));
        fixture.write("status/pods/default_one.json", r#"{"addresses":["10.1.0.2"],"node":"n"}"#);
        assert_eq!(fixture.pods(), ["one"]);
        let away = fixture.folder.path().with_extension("away");
        fs::rename(fixture.folder.path(), &away).unwrap();
        let missing = fixture.read();
        fs::create_dir(fixture.folder.path()).unwrap();
        let empty = fixture.read();
        fs::remove_dir(fixture.folder.path()).unwrap();
        fs::rename(&away, fixture.folder.path()).unwrap();
        for records in [missing, empty] {
            assert_eq!((records.pods.len(), records.pod_status.len(), records.problems.len()), (1, 1, 1));
        }
        assert_eq!(fixture.read().problems, []);
    }

    #[test]
    fn nothing_was_read_until_there_is_a_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(folder.path());
        assert!(reader.read(&HashSet::new()).is_none());
        assert!(Reader::new(&folder.path().join("missing")).read(&HashSet::new()).is_none());
    }

    #[test]
    fn status_is_read_and_withdrawn() {
        let mut fixture = Fixture::new();
        fixture.write(
            "status/nodes/n.json",
            r#"{"publicKey":"k","endpoint":"172.31.1.2:51820","address":"172.31.1.2","podRanges":["10.1.0.0/16"]}"#,
        );
        fixture.write("status/pods/a_b.json", r#"{"addresses":["10.1.0.2"],"node":"n","uid":"u"}"#);
        fixture.write("status/pods/no-separator.json", r#"{"addresses":["10.1.0.3"],"node":"n"}"#);
        fixture.write("status/pods/a_c.json", r#"{"addresses":["nonsense"],"node":"n"}"#);
        let records = fixture.read();
        assert_eq!(records.node_status["n"].endpoint.port(), 51820);
        assert_eq!(records.pod_status.keys().map(ToString::to_string).collect::<Vec<_>>(), ["a/b"]);
        assert_eq!(records.problems.len(), 1);
        fixture.remove("status/pods/a_b.json");
        assert!(fixture.read().pod_status.is_empty());
    }

    #[test]
    fn a_touched_file_is_read_again_though_it_looks_the_same() {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &pod("one"));
        fixture.pods();
        // As if a version had been read that was only half written.
        fixture.reader.manifests.files.get_mut("a.yaml").unwrap().content = None;
        assert_eq!(fixture.pods(), [""; 0]);
        let records = fixture.reader.read(&HashSet::from(["a.yaml".into()])).unwrap();
        assert_eq!(records.pods.len(), 1);
    }
}
