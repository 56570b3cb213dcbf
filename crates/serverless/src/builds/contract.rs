//! The buildpack's contract: what a source needs to be built, and how its image starts.
//!
//! Pure but for [`Facts::read`]: the files that matter come in as text, a plan comes out. It keeps
//! to what Google's buildpacks promise: functions are served by the functions framework, `start` of
//! `package.json` or `Procfile` starts a web server, `main.py` is served by gunicorn.
//!
//! Invariant: a plan starts something that listens on `$PORT`, or there is none.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::runtimes::{Language, Runtime};
use super::small_text;

/// Where the source is in the image.
pub const WORKSPACE: &str = "/workspace";
/// Where what was installed beside the source is in the image.
pub const LAYERS: &str = "/layers";
/// Where Node's functions framework is when the source does not bring its own.
const NODE_FRAMEWORK: &str = "/layers/functions-framework";
/// Where pip installs.
const PYTHON_USER: &str = "/layers/python";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// A runtime or a base image; found out if absent.
    pub runtime: Option<&'a str>,
    /// The function to serve.
    pub function: Option<&'a str>,
    /// `http` or `cloudevent`.
    pub signature: Option<&'a str>,
    /// Variables of the build.
    pub environment: &'a BTreeMap<String, String>,
}

/// What the files of a source say.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `package.json`.
    pub package: Option<String>,
    /// Whether there is `package-lock.json` or `npm-shrinkwrap.json`.
    pub has_lock: bool,
    /// `requirements.txt`.
    pub requirements: Option<String>,
    /// `Procfile`.
    pub procfile: Option<String>,
    /// Files of the top directory.
    pub files: Vec<String>,
}

impl Facts {
    /// Reads them from a source's directory.
    pub fn read(directory: &Path) -> io::Result<Facts> {
        let mut files: Vec<String> = std::fs::read_dir(directory)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        files.sort();
        let has = |name: &str| files.iter().any(|file| file == name);
        Ok(Facts {
            package: small_text(&directory.join("package.json"))?,
            has_lock: has("package-lock.json") || has("npm-shrinkwrap.json"),
            requirements: small_text(&directory.join("requirements.txt"))?,
            procfile: small_text(&directory.join("Procfile"))?,
            files,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file == name)
    }
}

/// How a source is built and started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it is, for the log.
    pub title: String,
    /// What it is built for.
    pub runtime: Runtime,
    /// Command lines of the build, each with the name of its step.
    pub steps: Vec<(&'static str, String)>,
    /// The image's command.
    pub command: Vec<String>,
    /// The image's environment.
    pub environment: BTreeMap<String, String>,
}

/// Decides how a source is built; the error is a sentence for its owner. `offered` is what can be
/// built for here, the preferred first.
pub fn plan(wanted: &Wanted<'_>, facts: &Facts, offered: &[Runtime]) -> Result<Plan, String> {
    let runtime = runtime(wanted, facts, offered)?;
    let mut plan = match runtime.language {
        Language::Node => node(wanted, facts, runtime)?,
        Language::Python => python(wanted, facts, runtime)?,
    };
    if let Some(function) = wanted.function {
        plan.environment.insert("FUNCTION_TARGET".to_owned(), function.to_owned());
        let signature = wanted.signature.unwrap_or("http");
        plan.environment.insert("FUNCTION_SIGNATURE_TYPE".to_owned(), signature.to_owned());
    }
    if let Some(entry) = wanted.environment.get("GOOGLE_ENTRYPOINT") {
        plan.command = by_shell(entry);
    }
    Ok(plan)
}

fn runtime(wanted: &Wanted<'_>, facts: &Facts, offered: &[Runtime]) -> Result<Runtime, String> {
    if let Some(named) = wanted.runtime.filter(|named| !named.is_empty()) {
        return Runtime::parse(named).ok_or_else(|| {
            format!(
                "'{named}' is neither a Node.js nor a Python runtime: sources in other languages \
                 are built from a Dockerfile, or deploy an image"
            )
        });
    }
    let is_python = facts.requirements.is_some() || facts.has("main.py") || facts.has("app.py");
    let language = match (facts.package.is_some(), is_python) {
        (true, _) => Language::Node,
        (false, true) => Language::Python,
        (false, false) => {
            return Err("No buildpack fits: the source has no package.json (Node.js), no \
                        requirements.txt or main.py (Python) and no Dockerfile"
                .to_owned());
        }
    };
    let found = offered.iter().find(|runtime| runtime.language == language);
    found.copied().ok_or_else(|| match language {
        Language::Node => "Node.js cannot be had here: install nodejs and npm".to_owned(),
        Language::Python => "Python cannot be had here: install python3 and pip".to_owned(),
    })
}

fn by_shell(line: &str) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), format!("exec {line}")]
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

/// The command of the `web` process.
fn web_process(procfile: &str) -> Option<&str> {
    let web = procfile.lines().find_map(|line| line.trim_start().strip_prefix("web:"));
    web.map(str::trim).filter(|command| !command.is_empty())
}

fn node(wanted: &Wanted<'_>, facts: &Facts, runtime: Runtime) -> Result<Plan, String> {
    let package: Value = match &facts.package {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("package.json is not JSON: {error}"))?,
        None if wanted.function.is_some() => Value::Null,
        None => return Err("A Node.js source needs a package.json".to_owned()),
    };
    let script = |name: &str| package["scripts"][name].as_str().is_some_and(|s| !s.is_empty());
    let install = if facts.has_lock { "npm ci" } else { "npm install" };
    let mut steps = Vec::new();
    let compile = ["gcp-build", "build"].into_iter().find(|name| script(name));
    match (facts.package.is_some(), compile) {
        (false, _) => {}
        (true, Some(name)) => {
            steps.push(("npm install", format!("{install} --include=dev")));
            steps.push(("npm run build", format!("npm run {name}")));
            steps.push(("npm prune", "npm prune --omit=dev".to_owned()));
        }
        (true, None) => steps.push(("npm install", format!("{install} --omit=dev"))),
    }
    let mut environment = BTreeMap::from([("NODE_ENV".to_owned(), "production".to_owned())]);
    let command = if wanted.function.is_some() {
        let brings = package["dependencies"]["@google-cloud/functions-framework"].is_string();
        let folder = if brings { WORKSPACE } else { NODE_FRAMEWORK };
        if !brings {
            let line = format!(
                "mkdir -p {NODE_FRAMEWORK} && npm install --prefix {NODE_FRAMEWORK} \
                 @google-cloud/functions-framework"
            );
            steps.push(("functions framework", line));
            environment.insert("NODE_PATH".to_owned(), format!("{NODE_FRAMEWORK}/node_modules"));
        }
        environment.insert("FUNCTION_SOURCE".to_owned(), WORKSPACE.to_owned());
        vec![format!("{folder}/node_modules/.bin/functions-framework")]
    } else if let Some(web) = facts.procfile.as_deref().and_then(web_process) {
        by_shell(web)
    } else if script("start") {
        words(&["npm", "start"])
    } else {
        let main = package["main"].as_str().filter(|main| !main.is_empty());
        let file = main.or(["server.js", "index.js"].into_iter().find(|name| facts.has(name)));
        let file = file.ok_or(
            "package.json has no \"start\" script, and there is neither a Procfile nor a server.js",
        )?;
        words(&["node", file])
    };
    Ok(Plan { title: title(wanted, "Node.js"), runtime, steps, command, environment })
}

fn python(wanted: &Wanted<'_>, facts: &Facts, runtime: Runtime) -> Result<Plan, String> {
    let requirements = facts.requirements.as_deref().unwrap_or_default();
    let requires = |name: &str| {
        requirements.lines().any(|line| {
            let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
            let named = line[..end.unwrap_or(line.len())].to_ascii_lowercase().replace('_', "-");
            named == name
        })
    };
    let pip = "python3 -m pip install --user --no-warn-script-location";
    let mut steps = Vec::new();
    if facts.requirements.is_some() {
        steps.push(("pip install", format!("{pip} -r requirements.txt")));
    }
    let web = facts.procfile.as_deref().and_then(web_process);
    let command = if wanted.function.is_some() {
        if !facts.has("main.py") {
            return Err("The source of a Python function must have a main.py".to_owned());
        }
        if !requires("functions-framework") {
            steps.push(("functions framework", format!("{pip} functions-framework")));
        }
        words(&["python3", "-m", "functions_framework"])
    } else if let Some(web) = web {
        by_shell(web)
    } else {
        let module = ["main", "app"].into_iter().find(|name| facts.has(&format!("{name}.py")));
        let module = module.ok_or("There is neither a Procfile nor a main.py to serve")?;
        if !requires("gunicorn") {
            steps.push(("gunicorn", format!("{pip} gunicorn")));
        }
        by_shell(&format!(
            "python3 -m gunicorn --bind :$PORT --workers 1 --threads 8 --timeout 0 {module}:app"
        ))
    };
    let environment = BTreeMap::from([
        ("PYTHONUSERBASE".to_owned(), PYTHON_USER.to_owned()),
        ("PYTHONUNBUFFERED".to_owned(), "TRUE".to_owned()),
        (
            "PATH".to_owned(),
            format!(
                "{PYTHON_USER}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            ),
        ),
    ]);
    Ok(Plan { title: title(wanted, "Python"), runtime, steps, command, environment })
}

fn title(wanted: &Wanted<'_>, language: &str) -> String {
    match wanted.function {
        Some(function) => format!("{language} function '{function}'"),
        None => format!("{language} web server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: [Runtime; 2] = [
        Runtime { language: Language::Node, major: 20, minor: 0 },
        Runtime { language: Language::Python, major: 3, minor: 12 },
    ];

    fn facts(files: &[(&str, &str)]) -> Facts {
        let text = |name: &str| {
            files.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned())
        };
        Facts {
            package: text("package.json"),
            has_lock: text("package-lock.json").is_some(),
            requirements: text("requirements.txt"),
            procfile: text("Procfile"),
            files: files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    fn read(runtime: &str, function: &str, files: &[(&str, &str)]) -> String {
        let environment = BTreeMap::new();
        let wanted = Wanted {
            runtime: Some(runtime),
            function: Some(function).filter(|name| !name.is_empty()),
            signature: None,
            environment: &environment,
        };
        match plan(&wanted, &facts(files), &OFFERED) {
            Ok(plan) => {
                let steps: Vec<String> = plan.steps.into_iter().map(|(_, line)| line).collect();
                format!("{}: {} => {}", plan.runtime, steps.join("; "), plan.command.join(" "))
            }
            Err(sentence) => sentence,
        }
    }

    #[test]
    fn node_sources_follow_their_package_json() {
        let framework = r#"{"dependencies":{"@google-cloud/functions-framework":"^4"}}"#;
        for (function, files, expected) in [
            (
                "hello",
                vec![("package.json", "{}")],
                "nodejs20: npm install --omit=dev; mkdir -p /layers/functions-framework && npm install --prefix /layers/functions-framework @google-cloud/functions-framework => /layers/functions-framework/node_modules/.bin/functions-framework",
            ),
            (
                "hello",
                vec![("package.json", framework), ("package-lock.json", "{}")],
                "nodejs20: npm ci --omit=dev => /workspace/node_modules/.bin/functions-framework",
            ),
            (
                "",
                vec![("package.json", r#"{"scripts":{"start":"node a.js","build":"tsc"}}"#)],
                "nodejs20: npm install --include=dev; npm run build; npm prune --omit=dev => npm start",
            ),
            (
                "",
                vec![("package.json", "{}"), ("server.js", "")],
                "nodejs20: npm install --omit=dev => node server.js",
            ),
            (
                "",
                vec![("package.json", "{}")],
                "package.json has no \"start\" script, and there is neither a Procfile nor a server.js",
            ),
            (
                "",
                vec![("package.json", "{}"), ("Procfile", "worker: x\nweb: node x.js --p $PORT\n")],
                "nodejs20: npm install --omit=dev => /bin/sh -c exec node x.js --p $PORT",
            ),
        ] {
            assert_eq!(read("", function, &files), expected);
        }
        assert!(read("nodejs20", "", &[("package.json", "{")]).starts_with("package.json is not"));
    }

    #[test]
    fn python_sources_follow_their_requirements() {
        let pip = "python3 -m pip install --user --no-warn-script-location";
        for (runtime, function, files, expected) in [
            (
                "python312",
                "hello",
                vec![("main.py", ""), ("requirements.txt", "flask\n")],
                format!("python312: {pip} -r requirements.txt; {pip} functions-framework => python3 -m functions_framework"),
            ),
            (
                "",
                "hello",
                vec![("main.py", ""), ("requirements.txt", "Functions_Framework==3.*\n")],
                format!("python312: {pip} -r requirements.txt => python3 -m functions_framework"),
            ),
            (
                "",
                "",
                vec![("main.py", "")],
                format!("python312: {pip} gunicorn => /bin/sh -c exec python3 -m gunicorn --bind :$PORT --workers 1 --threads 8 --timeout 0 main:app"),
            ),
            ("", "hello", vec![("app.py", "")], "The source of a Python function must have a main.py".to_owned()),
            ("go123", "", vec![], "'go123' is neither a Node.js nor a Python runtime: sources in other languages are built from a Dockerfile, or deploy an image".to_owned()),
            ("", "", vec![("main.go", "")], "No buildpack fits: the source has no package.json (Node.js), no requirements.txt or main.py (Python) and no Dockerfile".to_owned()),
        ] {
            assert_eq!(read(runtime, function, &files), expected);
        }
    }
}
