//! The program of the test images: does to order what containers do, and tells what it sees.
//!
//! Compiled by the tests with nothing but `std`. The first argument says what to do; `serve`
//! answers `GET /what/argument` with text.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use std::{env, fs, io, process, thread};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn syscall(number: c_long, ...) -> c_long;
    fn getuid() -> u32;
    fn getgid() -> u32;
    fn fork() -> c_int;
}

const SIGTERM: c_int = 15;
const CLONE_NEWUSER: c_int = 0x1000_0000;
const SYS_CLONE3: c_long = 435;
const SYS_BPF: c_long = 321;
const SYS_X32_GETPID: c_long = 0x4000_0000 + 39;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", code, ..] => {
            println!("about to exit");
            eprintln!("with {code}");
            process::exit(code.parse().unwrap());
        }
        ["sleep", ..] => sleep_forever(),
        ["serve", address, ..] => serve(address),
        ["slow", address, milliseconds] => {
            thread::sleep(Duration::from_millis(milliseconds.parse().unwrap()));
            serve(address);
        }
        ["eat", mebibytes] => eat(mebibytes.parse().unwrap()),
        ["flood", address] => {
            let address = address.to_owned();
            thread::spawn(move || serve(&address));
            let line = "x".repeat(200);
            loop {
                let _ = writeln!(io::stdout(), "{line}");
            }
        }
        ["fork", address] => {
            let address = address.to_owned();
            thread::spawn(move || serve(&address));
            loop {
                // A container that forks without end; the children stay.
                if unsafe { fork() } == 0 {
                    sleep_forever();
                }
            }
        }
        _ => {
            eprintln!("subject: do what? {words:?}");
            process::exit(64);
        }
    }
}

fn sleep_forever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn eat(mebibytes: usize) -> ! {
    let mut eaten = Vec::new();
    for _ in 0..mebibytes {
        eaten.push(vec![1u8; 1024 * 1024]);
    }
    println!("ate {}", eaten.len());
    sleep_forever()
}

extern "C" fn leave(_: c_int) {
    process::exit(7);
}

fn serve(address: &str) -> ! {
    let port = env::var("PORT").unwrap_or("8080".to_owned());
    let address = address.replace("PORT", &port);
    let listener = TcpListener::bind(&address).unwrap();
    println!("serving on {address}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
    process::exit(0)
}

fn fetch(target: &str) -> std::io::Result<String> {
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    // One write: whoever answers after the first piece it reads has read everything.
    let question = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(question.as_bytes())?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text)?;
    Ok(text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| body.to_owned()))
}

fn answer(mut stream: TcpStream) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut line).unwrap();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) < 3 {
            break;
        }
    }
    let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    let (what, argument) = path.split_once('/').unwrap_or((&path, ""));
    let (status, text) = match what {
        "file" => match fs::read_to_string(format!("/{argument}")) {
            Ok(text) => (200, text),
            Err(error) => (404, error.to_string()),
        },
        "list" => match fs::read_dir(format!("/{argument}")) {
            Ok(entries) => (
                200,
                entries
                    .flatten()
                    .map(|e| e.file_name().to_string_lossy().into_owned() + "\n")
                    .collect(),
            ),
            Err(error) => (404, error.to_string()),
        },
        "write" => match fs::write(format!("/{argument}"), "written") {
            Ok(()) => (200, "written".to_owned()),
            Err(error) => (500, error.to_string()),
        },
        "fill" => (200, fill(argument)),
        "environment" => {
            (200, env::vars().map(|(name, value)| format!("{name}={value}\n")).collect())
        }
        "where" => (200, env::current_dir().unwrap().display().to_string()),
        "who" => (200, format!("{}:{}", unsafe { getuid() }, unsafe { getgid() })),
        "try" => (200, attempt(argument)),
        "connect" => (
            200,
            TcpStream::connect(argument).map_or_else(|e| e.to_string(), |_| "connected".to_owned()),
        ),
        // fetch/HOST:PORT/PATH, with the header the metadata server wants.
        "fetch" => (200, fetch(argument).unwrap_or_else(|error| error.to_string())),
        "term" => {
            match argument {
                "handle" => unsafe { signal(SIGTERM, leave as *const () as usize) },
                _ => unsafe { signal(SIGTERM, 1) },
            };
            (200, "set".to_owned())
        }
        "status" => (argument.parse().unwrap_or(400), "as you wish".to_owned()),
        "exit" => process::exit(argument.parse().unwrap()),
        _ => (200, "ok".to_owned()),
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
}

/// Fills the disk and says how many MiB went in.
fn fill(path: &str) -> String {
    let mut file = fs::File::create(format!("/{path}")).unwrap();
    let piece = vec![1u8; 1024 * 1024];
    for count in 0..4096 {
        if let Err(error) = file.write_all(&piece) {
            return format!("{count} {error}");
        }
    }
    "4096".to_owned()
}

fn attempt(what: &str) -> String {
    let target = CString::new("/tmp").unwrap();
    let kind = CString::new("tmpfs").unwrap();
    let device = CString::new("/tmp/device").unwrap();
    let result = unsafe {
        match what {
            "mount" => {
                mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()).into()
            }
            "unshare" => unshare(CLONE_NEWUSER).into(),
            "mknod" => mknod(device.as_ptr(), 0o060_666, 0xfd00).into(),
            "clone3" => syscall(SYS_CLONE3, 0, 0),
            "bpf" => syscall(SYS_BPF, 0, 0, 0),
            "x32" => syscall(SYS_X32_GETPID),
            _ => -2,
        }
    };
    if result == -1 { io::Error::last_os_error().to_string() } else { format!("returned {result}") }
}
