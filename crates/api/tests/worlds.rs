//! Golden conversations: files of requests with the exact answers they get.
//!
//! A line `> METHOD path` starts a request; lines up to the next `<` or `>` are its body, in which
//! `${a.b}` stands for a field of what was last got and `@{file}` for a file of `certificates/`. What is told of an answer is chosen by the mark: `>`
//! tells an operation's outcome or a refusal's sentence on one line and any other answer in full,
//! `>>` tells all in full. `UPDATE_GOLDEN=1` writes the answers anew.
//!
//! Every refused request is checked to have changed nothing, and every answer to hold no private key.

mod support;

use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use support::Server;

#[derive(Debug)]
enum Part {
    Comment(String),
    Request { mark: &'static str, method: String, target: String, body: String },
}

fn read(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut in_answer = false;
    for line in text.lines() {
        let request = line.strip_prefix(">> ").map(|rest| (">>", rest));
        if let Some((mark, rest)) =
            request.or_else(|| line.strip_prefix("> ").map(|rest| (">", rest)))
        {
            let (method, target) = rest.split_once(' ').expect("a method and a path");
            let (method, target) = (method.to_string(), target.to_string());
            parts.push(Part::Request { mark, method, target, body: String::new() });
            in_answer = false;
        } else if line.starts_with('<') {
            in_answer = true;
        } else if let Some(comment) = line.strip_prefix("# ") {
            parts.push(Part::Comment(comment.to_string()));
            in_answer = true;
        } else if !in_answer
            && !line.is_empty()
            && let Some(Part::Request { body, .. }) = parts.last_mut()
        {
            body.push_str(line);
            body.push('\n');
        }
    }
    parts
}

/// Puts fields of what was last got in the place of `${…}` and files in the place of `@{…}`.
fn filled(text: &str, last: &Value) -> String {
    let field = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        let value = last.pointer(&pointer).unwrap_or_else(|| panic!("no {path} in {last:#}"));
        value.as_str().map_or_else(|| value.to_string(), str::to_string)
    };
    let file = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
        std::fs::read_to_string(folder.join(name)).expect(name).trim_end().replace('\n', "\\n")
    };
    replaced(&replaced(text, "${", field), "@{", file)
}

fn replaced(text: &str, opening: &str, value: impl Fn(&str) -> String) -> String {
    let mut replaced = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(opening) {
        let (name, after) = after.split_once('}').expect("a closing brace");
        replaced.push_str(before);
        replaced.push_str(&value(name));
        rest = after;
    }
    replaced + rest
}

fn told(mark: &str, status: u16, answer: &Value) -> String {
    let error = answer.get("error").filter(|_| status >= 400);
    if let (Some(error), ">") = (error, mark) {
        let message = error["message"].as_str().unwrap_or_default();
        return format!(
            "< {status} {}: {message}\n",
            error["errors"][0]["reason"].as_str().unwrap_or("?")
        );
    }
    if mark == ">" && answer["kind"] == "compute#operation" && status == 200 {
        let word = |field: &str| answer[field].as_str().unwrap_or("?").to_string();
        let mut line = format!("< {status} {} {}", word("operationType"), word("status"));
        for error in answer["error"]["errors"].as_array().into_iter().flatten() {
            let _ = write!(
                line,
                " {}: {}",
                error["code"].as_str().unwrap_or("?"),
                error["message"].as_str().unwrap_or("?")
            );
        }
        return line + "\n";
    }
    if answer.is_null() { format!("< {status}\n") } else { format!("< {status}\n{answer:#}\n") }
}

async fn replay(text: &str) -> String {
    let server = Server::start().await;
    let mut transcript = String::new();
    let mut last = Value::Null;
    for part in read(text) {
        match part {
            Part::Comment(comment) => {
                if !transcript.is_empty() {
                    transcript.push('\n');
                }
                let _ = writeln!(transcript, "# {comment}");
            }
            Part::Request { mark, method, target, body } => {
                let before = server.api.world().state().revision;
                let sent = filled(&body, &last);
                let response = server.send(&method, &filled(&target, &last), sent).await;
                let status = response.status.as_u16();
                let after = server.api.world().state().revision;
                assert!(
                    status < 400 || before == after,
                    "{method} {target} was refused and changed something"
                );
                let text = String::from_utf8_lossy(&response.body);
                assert!(!text.contains("PRIVATE KEY"), "{method} {target} gives a key away");
                let answer = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
                let told = told(mark, status, &answer);
                let _ = write!(transcript, "{mark} {method} {target}\n{body}{told}");
                if method == "GET" && status == 200 {
                    last = answer;
                }
            }
        }
    }
    transcript
}

fn worlds() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worlds");
    let entries = std::fs::read_dir(folder).expect("the folder of worlds");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_world_answers_as_it_is_written() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut differing = Vec::new();
    for file in worlds() {
        let expected = std::fs::read_to_string(&file).expect("a world");
        let transcript = replay(&expected).await;
        if update {
            std::fs::write(&file, &transcript).expect("the world is written");
        } else if transcript != expected {
            let first = transcript.lines().zip(expected.lines()).find(|(got, want)| got != want);
            differing.push(format!("{}: {first:#?}", file.display()));
        }
    }
    assert!(
        differing.is_empty(),
        "UPDATE_GOLDEN=1 writes the answers anew\n{}",
        differing.join("\n")
    );
}
