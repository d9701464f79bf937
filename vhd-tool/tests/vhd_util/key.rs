use std::fs;

use testkit::golden;

use crate::program::{done, files, refused};

const NAME: &str = "empty-10m.vhd";

#[test]
fn a_hash_is_set_and_printed() {
    let folder = golden::unpack(&[NAME]);
    let (hash, nonce) = ("0123456789abcdef".repeat(4), "fe".repeat(32));
    assert_eq!(done(folder.path(), &["key", "-p", "-n", NAME]), "none\n");
    assert_eq!(done(folder.path(), &["key", "-s", "-n", NAME, "-H", &hash, "-N", &nonce]), "");
    assert_eq!(done(folder.path(), &["key", "--debug", "-p", "-n", NAME]), format!("{nonce} {hash}\n"));
    done(folder.path(), &["key", "-s", "-n", NAME, "-H", &hash]);
    assert_eq!(done(folder.path(), &["key", "-p", "-n", NAME]), format!("{} {hash}\n", "00".repeat(32)));
}

#[test]
fn a_key_is_hashed_after_the_nonce_and_checked() {
    let folder = golden::unpack(&[NAME]);
    for length in [32, 64] {
        let key = vec![7; length];
        fs::write(folder.path().join("key"), &key).unwrap();
        fs::write(folder.path().join("other"), vec![8; length]).unwrap();
        let nonce = "05".repeat(32);
        done(folder.path(), &["key", "-s", "-n", NAME, "-k", "key", "-N", &nonce]);
        let hash = testkit::sha256(&[vec![5; 32], key].concat());
        assert_eq!(done(folder.path(), &["key", "-p", "-n", NAME]), format!("{nonce} {hash}\n"));
        assert_eq!(done(folder.path(), &["key", "-c", "-n", NAME, "-k", "key"]), "");
        assert_eq!(done(folder.path(), &["key", "-C", "-n", NAME]), "");
        refused(folder.path(), &["key", "-c", "-n", NAME, "-k", "other"], 22);
        assert_eq!(done(folder.path(), &["key", "-C", "-k", "key", "-N", &nonce]), format!("{hash}\n"));
        // Each time another nonce, where none is given.
        done(folder.path(), &["key", "-s", "-n", NAME, "-k", "key"]);
        let first = done(folder.path(), &["key", "-p", "-n", NAME]);
        done(folder.path(), &["key", "-s", "-n", NAME, "-k", "key"]);
        assert_ne!(done(folder.path(), &["key", "-p", "-n", NAME]), first);
        assert_eq!(done(folder.path(), &["key", "-c", "-n", NAME, "-k", "key"]), "");
    }
}

#[test]
fn what_is_no_key_is_refused() {
    let folder = golden::unpack(&[NAME]);
    fs::write(folder.path().join("short"), [7; 31]).unwrap();
    fs::write(folder.path().join("long"), [7; 65]).unwrap();
    refused(folder.path(), &["key", "-s", "-n", NAME, "-k", "short"], 22);
    refused(folder.path(), &["key", "-s", "-n", NAME, "-k", "long"], 22);
    refused(folder.path(), &["key", "-s", "-n", NAME, "-k", "none"], 2);
    refused(folder.path(), &["key", "-s", "-n", NAME, "-H", "12"], 22);
    refused(folder.path(), &["key", "-s", "-n", NAME, "-H", &"é".repeat(32)], 22);
    refused(folder.path(), &["key", "-s", "-n", NAME], 22);
    refused(folder.path(), &["key", "-n", NAME], 22);
    refused(folder.path(), &["key", "-p", "-n", "none.vhd"], 2);
    refused(folder.path(), &["key", "-C", "-n", NAME], 22);
    refused(folder.path(), &["key", "-C"], 22);
    assert_eq!(done(folder.path(), &["key", "-p", "-n", NAME]), "none\n");
}

/// Whoever decrypts what is not encrypted has nothing.
#[test]
fn an_image_that_holds_data_gets_no_key() {
    let folder = golden::unpack(&["base.vhd", "fixed-4m.vhd"]);
    let before = files(folder.path());
    for image in ["base.vhd", "fixed-4m.vhd"] {
        refused(folder.path(), &["key", "-s", "-n", image, "-H", &"ab".repeat(32)], 22);
    }
    assert_eq!(files(folder.path()), before);
}
