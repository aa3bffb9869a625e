//! The server's surroundings on its machine: other programs, the port of a service manager, a directory.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::database::Database;
use super::server::Server;

/// The backlog of `signal-feed.socket`.
const BACKLOG: i32 = 4096;

/// A program that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for one test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("signal-feed-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Keeps the port open while no server runs, as systemd does.
pub struct Port(TcpListener);

impl Port {
    pub fn open() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(BACKLOG).unwrap();
        Self(socket.into())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Starts a server on it, by the protocol of sd_listen_fds(3).
    pub fn serve(&self, database: &Database) -> Server {
        self.serve_with(Path::new(env!("CARGO_BIN_EXE_signal-feed")), database, &[])
    }

    /// The same with a program and options of the caller's.
    pub fn serve_with(&self, program: &Path, database: &Database, options: &[&str]) -> Server {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.arg(program).args(["serve", "--ops-listen", "off"]).args(options).env("DATABASE_URL", &database.url);
        command.stdin(Stdio::from(OwnedFd::from(self.0.try_clone().unwrap())));
        Server::spawn(command)
    }
}

/// A free address of this machine.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An nginx in one process, which ends with the test; `http` is the content of its http block.
pub fn nginx(scratch: &Scratch, http: &str) -> Running {
    let dir = scratch.0.display();
    let configuration = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx-errors;\n\
         events {{ worker_connections 2048; }}\nhttp {{\n  log_format status $status; access_log {dir}/nginx-statuses status;\n  \
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi; \
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n{http}\n}}\n"
    );
    let path = scratch.0.join("nginx.conf");
    fs::write(&path, configuration).unwrap();
    Running(Command::new("nginx").arg("-c").arg(&path).stderr(Stdio::null()).spawn().unwrap())
}
