//! The environment that points a shell's clients at this server.
//!
//! Pure. The bundle every variable names holds the system's roots and the private CA, because a
//! variable the user's shell already had would win over one that was left out, and because hosts
//! that are tunnelled untouched must verify as before. `NO_PROXY` is the user's and stays so.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;

/// What a client has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointing {
    /// Where the door listens.
    pub address: SocketAddr,
    /// The file with the system's roots and the private CA.
    pub bundle: PathBuf,
    /// The file that holds the token.
    pub token_file: PathBuf,
    /// The token itself, for clients that read no file.
    pub token: String,
    /// The project commands are about when none is named.
    pub project: String,
    /// PATH with the programs in front that gcloud starts and its packages leave out.
    pub path: String,
    /// Where the `run.app` addresses of services are answered without and with TLS, for clients that use
    /// no proxy.
    pub run_app: Option<[SocketAddr; 2]>,
}

/// Every variable a client reads its trusted certificates from.
pub const CERTIFICATE_VARIABLES: &[&str] = &[
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NODE_EXTRA_CA_CERTS",
];

/// The shells an environment is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash, zsh and every other `export`.
    Posix,
    /// fish.
    Fish,
    /// PowerShell.
    PowerShell,
    /// A JSON object, for programs.
    Json,
}

impl Pointing {
    /// The variables and their values, in the order they are printed.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let proxy = format!("http://{}", self.address);
        let bundle = self.bundle.display().to_string();
        // Python's and curl's readers disagree about the case, and one already set would win.
        let mut environment = vec![("HTTPS_PROXY", proxy.clone()), ("https_proxy", proxy)];
        environment.extend(CERTIFICATE_VARIABLES.iter().map(|name| (*name, bundle.clone())));
        environment.extend([
            ("PATH", self.path.clone()),
            ("CLOUDSDK_CORE_PROJECT", self.project.clone()),
            ("GOOGLE_CLOUD_PROJECT", self.project.clone()),
            ("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", self.token_file.display().to_string()),
            ("GOOGLE_OAUTH_ACCESS_TOKEN", self.token.clone()),
            ("CLOUDSDK_CORE_DISABLE_PROMPTS", "1".to_owned()),
            ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1".to_owned()),
            ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1".to_owned()),
        ]);
        if let Some([http, https]) = self.run_app {
            environment.push(("TIDEGATE_RUN_APP_HTTP", http.to_string()));
            environment.push(("TIDEGATE_RUN_APP_HTTPS", https.to_string()));
        }
        environment
    }

    /// The environment as text for a shell.
    pub fn render(&self, shell: Shell) -> String {
        let environment = self.environment();
        if shell == Shell::Json {
            let object = environment
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Value::String(value)))
                .collect::<serde_json::Map<_, _>>();
            return format!("{:#}\n", Value::Object(object));
        }
        let mut text = String::new();
        for (name, value) in environment {
            let quoted = quote(&value, shell);
            // Writing to a `String` cannot fail.
            let _ = match shell {
                Shell::Fish => writeln!(text, "set -gx {name} {quoted}"),
                Shell::PowerShell => writeln!(text, "$env:{name} = {quoted}"),
                Shell::Posix | Shell::Json => writeln!(text, "export {name}={quoted}"),
            };
        }
        text
    }
}

/// A value between single quotes, in which nothing is expanded by any of these shells.
fn quote(value: &str, shell: Shell) -> String {
    let inside = match shell {
        Shell::Fish => value.replace('\\', r"\\").replace('\'', r"\'"),
        Shell::PowerShell => value.replace('\'', "''"),
        Shell::Posix | Shell::Json => value.replace('\'', r"'\''"),
    };
    format!("'{inside}'")
}

/// The bundle: the system's roots, and the private CA after them.
pub fn bundle(system_roots: &str, private_authority: &str) -> String {
    let roots = system_roots.trim_end();
    match roots.is_empty() {
        true => private_authority.to_owned(),
        false => format!("{roots}\n{private_authority}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::process::Command;

    fn pointing() -> Pointing {
        Pointing {
            address: SocketAddr::from(([127, 0, 0, 1], 4321)),
            bundle: "/data/door/roots.pem".into(),
            token_file: "/data/door/token".into(),
            token: "secret".to_owned(),
            project: "it's mine".to_owned(),
            path: "/data/bin:/bin".to_owned(),
            run_app: Some(["127.0.0.1:81".parse().unwrap(), "127.0.0.1:444".parse().unwrap()]),
        }
    }

    #[test]
    fn each_shell_is_told_in_its_own_words() {
        expect![[r#"
            export HTTPS_PROXY='http://127.0.0.1:4321'
            export https_proxy='http://127.0.0.1:4321'
            export CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE='/data/door/roots.pem'
            export REQUESTS_CA_BUNDLE='/data/door/roots.pem'
            export SSL_CERT_FILE='/data/door/roots.pem'
            export CURL_CA_BUNDLE='/data/door/roots.pem'
            export HTTPLIB2_CA_CERTS='/data/door/roots.pem'
            export GRPC_DEFAULT_SSL_ROOTS_FILE_PATH='/data/door/roots.pem'
            export NODE_EXTRA_CA_CERTS='/data/door/roots.pem'
            export PATH='/data/bin:/bin'
            export CLOUDSDK_CORE_PROJECT='it'\''s mine'
            export GOOGLE_CLOUD_PROJECT='it'\''s mine'
            export CLOUDSDK_AUTH_ACCESS_TOKEN_FILE='/data/door/token'
            export GOOGLE_OAUTH_ACCESS_TOKEN='secret'
            export CLOUDSDK_CORE_DISABLE_PROMPTS='1'
            export CLOUDSDK_CORE_DISABLE_USAGE_REPORTING='1'
            export CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK='1'
            export TIDEGATE_RUN_APP_HTTP='127.0.0.1:81'
            export TIDEGATE_RUN_APP_HTTPS='127.0.0.1:444'
        "#]]
        .assert_eq(&pointing().render(Shell::Posix));
        let project = |shell| {
            let text = pointing().render(shell);
            text.lines().find(|line| line.contains("CORE_PROJECT")).unwrap_or("").trim().to_owned()
        };
        assert_eq!(project(Shell::Fish), r"set -gx CLOUDSDK_CORE_PROJECT 'it\'s mine'");
        assert_eq!(project(Shell::PowerShell), "$env:CLOUDSDK_CORE_PROJECT = 'it''s mine'");
        assert_eq!(project(Shell::Json), r#""CLOUDSDK_CORE_PROJECT": "it's mine","#);
    }

    #[test]
    fn a_shell_reads_back_every_value_and_keeps_its_own_no_proxy() {
        let script = format!(
            "{}printf '%s|%s' \"$CLOUDSDK_CORE_PROJECT\" \"$NO_PROXY\"",
            pointing().render(Shell::Posix)
        );
        let output = Command::new("sh").arg("-c").arg(script).env("NO_PROXY", "mine").output();
        let output = output.expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's mine|mine");
    }

    #[test]
    fn the_bundle_holds_both_kinds_of_roots() {
        assert_eq!(bundle("system\n\n", "private\n"), "system\nprivate\n");
        assert_eq!(bundle("", "private\n"), "private\n");
    }
}
