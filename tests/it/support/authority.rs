//! Certificates of a private authority, made by `openssl` as an operator would.

use std::path::Path;
use std::process::{Command, Stdio};

/// What `openssl` is told, in a directory of its own. `leaf NAME DAYS SUBJECT EXTENSIONS` is signed by `ours`.
const SCRIPT: &str = r#"
set -e
umask 077
cd "$1"
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
authority() { openssl req -new -x509 -days 30 $key -subj "/CN=$1" -keyout "$1.key" -out "$1.crt"; }
leaf() {
    openssl req -new $key -subj "$3" -keyout "$1.key" -out "$1.csr"
    if [ -n "$4" ]; then echo "$4" >"$1.ext"; set -- "$1" "$2" "-extfile $1.ext"; else set -- "$1" "$2" ""; fi
    openssl x509 -req -in "$1.csr" -days "$2" -CA ours.crt -CAkey ours.key -CAcreateserial -out "$1.crt" $3
}
authority ours
authority other
authority itself
leaf good 30 /CN=feed "subjectAltName = DNS:localhost"
leaf wrong_name 30 /CN=localhost "subjectAltName = DNS:elsewhere.example"
leaf expired 0 /CN=feed "subjectAltName = DNS:localhost"
leaf common_name 30 /CN=localhost "basicConstraints = CA:FALSE"
leaf version_1 30 /CN=localhost ""
"#;

/// Makes `ours.crt`, `other.crt` and `itself.crt`, which are authorities, and certificates that `ours` has signed: `good`
/// (for localhost), `wrong_name`, `expired`, `common_name` (no alternative name) and `version_1`, each with its key.
/// `shell` is `sh`, run as whoever shall own them.
pub fn make_certificates(mut shell: Command, directory: &Path) {
    let output = shell.args(["-c", SCRIPT, "sh"]).arg(directory).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    super::wait::until("the certificate has expired", || {
        let expired = directory.join("expired.crt");
        let mut check = Command::new("openssl");
        let check = check.args(["x509", "-checkend", "0", "-noout", "-in"]).arg(&expired).stdout(Stdio::null());
        (!check.status().unwrap().success()).then_some(())
    });
}
