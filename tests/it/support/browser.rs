//! A real, headless Chromium, driven by its own WebDriver (W3C WebDriver, a session a test).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::wait::until;

/// Starts chromedriver; `None` if it ends at once, else the process and its port.
fn start_driver() -> Option<(Child, String)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver is there (.ci/install tests)");
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
    let Some(started) = lines.find(|line| line.contains("started successfully on port")) else {
        let _ = driver.wait();
        return None;
    };
    // Its pipe must not fill up.
    std::thread::spawn(move || lines.for_each(drop));
    Some((driver, started.trim_end_matches('.').rsplit(' ').next().unwrap().to_owned()))
}

/// One browser window; dropping it ends the browser.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    profile: std::path::PathBuf,
}

impl Browser {
    /// A window of this size, in CSS pixels.
    pub fn open(width: u32, height: u32) -> Self {
        // The port that it chooses for IPv4 may be taken for IPv6; then it ends.
        let (driver, port) = (0..10).find_map(|_| start_driver()).expect("chromedriver starts");
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_secs(120)))
                .proxy(None)
                .build(),
        );
        let profile = std::env::temp_dir().join(format!("signal-feed-browser-{}-{port}", std::process::id()));
        let mut browser = Self { driver, agent, session: format!("http://127.0.0.1:{port}/session"), profile };
        let arguments = [
            "--headless=new".to_owned(),
            // Chromium refuses its sandbox to root, and CI is root.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={}", browser.profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = browser.call("", &wanted);
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        browser
    }

    /// A phone, 390 pixels wide: narrower than any window that Chromium opens.
    pub fn phone() -> Self {
        let browser = Self::open(500, 900);
        let metrics = json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true});
        browser.call("/goog/cdp/execute", &json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}));
        browser
    }

    /// Goes to a page and waits until it is loaded.
    pub fn go(&self, address: SocketAddr, path: &str) {
        self.call("/url", &json!({"url": format!("http://localhost:{}{path}", address.port())}));
    }

    /// What a function's body returns in the page.
    pub fn eval(&self, script: &str) -> Value {
        self.call("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text of the element with this id.
    pub fn text(&self, id: &str) -> String {
        self.eval(&format!("return document.getElementById({id:?}).textContent")).as_str().unwrap().to_owned()
    }

    /// Waits until the text of an element is as wanted, and returns it.
    pub fn wait_text(&self, id: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        until(&format!("#{id} to change"), || {
            last = self.text(id);
            wanted(&last).then(|| last.clone())
        })
    }

    /// Presses keys as a person does, where the focus is. `\u{e007}` is Enter, `\u{e004}` Tab.
    pub fn type_keys(&self, text: &str) {
        let presses: Vec<Value> = text
            .chars()
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})])
            .collect();
        self.call("/actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": presses}]}));
    }

    /// The page's console, violations of its policy included.
    pub fn console(&self) -> Vec<String> {
        let entries = self.call("/se/log", &json!({"type": "browser"}));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Makes the page light or dark (`prefers-color-scheme`).
    pub fn color_scheme(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("/goog/cdp/execute", &json!({"cmd": "Emulation.setEmulatedMedia", "params": features}));
    }

    /// Saves a picture of the page if `SIGNAL_FEED_SCREENSHOTS` names a directory.
    pub fn picture(&self, name: &str) {
        let Some(directory) = std::env::var_os("SIGNAL_FEED_SCREENSHOTS") else { return };
        let url = format!("{}/screenshot", self.session);
        let mut answer = self.agent.get(&url).call().unwrap();
        let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        let picture = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, answer["value"].as_str().unwrap());
        std::fs::write(std::path::Path::new(&directory).join(format!("{name}.png")), picture.unwrap()).unwrap();
    }

    fn call(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let mut answer = self.agent.post(&url).send(body.to_string()).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        assert_eq!(answer.status(), 200, "{path} {body}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser with its session.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
