//! Certificates of a private authority, made by `openssl` as an operator would.

use std::path::Path;
use std::process::{Command, Stdio};

/// The commands for `openssl`, in a directory of their own. `leaf NAME AUTHORITY DAYS SUBJECT EXTENSIONS`.
const SCRIPT: &str = r#"
set -e
umask 077
cd "$1"
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
authority() { openssl req -new -x509 -days 30 $key -subj "/CN=$2" -keyout "$1.key" -out "$1.crt"; }
leaf() {
    openssl req -new $key -subj "$4" -keyout "$1.key" -out "$1.csr"
    extensions=
    if [ -n "$5" ]; then echo "$5" >"$1.ext"; extensions="-extfile $1.ext"; fi
    openssl x509 -req -in "$1.csr" -days "$3" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -out "$1.crt" $extensions
}
authority ours ours
authority other other
authority impostor ours
authority itself itself
openssl req -new -x509 -days 30 $key -subj /CN=localhost -addext basicConstraints=critical,CA:FALSE \
    -addext subjectAltName=DNS:localhost -keyout plain.key -out plain.crt
leaf good ours 30 /CN=feed "subjectAltName = DNS:localhost"
leaf wrong_name ours 30 /CN=localhost "subjectAltName = DNS:elsewhere.example"
leaf expired ours 0 /CN=feed "subjectAltName = DNS:localhost"
leaf common_name ours 30 /CN=localhost "basicConstraints = CA:FALSE"
leaf wildcard ours 30 /CN=feed "subjectAltName = DNS:*.feed.example"
leaf version_1 ours 30 /CN=localhost ""
leaf intermediate ours 30 /CN=intermediate "basicConstraints = critical, CA:TRUE"
leaf chain intermediate 30 /CN=feed "subjectAltName = DNS:localhost"
cat intermediate.crt >>chain.crt
"#;

/// Makes `ours.crt`, `other.crt`, `impostor.crt` (which calls itself as ours does) and `itself.crt`, which are
/// authorities, `plain.crt`, which signed itself without being one, and certificates that `ours` has signed: `good`
/// (for localhost), `wrong_name`, `expired`, `common_name` (without alternative names), `wildcard`, `version_1`, and
/// `chain` by way of an intermediate. Each has its key. `shell` is `sh`, run as the user who should own them.
pub fn make_certificates(mut shell: Command, directory: &Path) {
    let output = shell.args(["-c", SCRIPT, "sh"]).arg(directory).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A certificate with zero days expires at once.
    let seconds = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let made = seconds();
    super::wait::until("the certificate has expired", || (seconds() > made).then_some(()));
}
