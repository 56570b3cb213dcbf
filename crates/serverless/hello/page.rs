//! The page: it says that it is running, and as which revision of which service.

use std::env;

pub(crate) fn html() -> String {
    let of = |name: &str| escape(&env::var(name).unwrap_or_default());
    let service = of("K_SERVICE");
    let revision = of("K_REVISION");
    let who = env::var("WHO").map(|who| format!("<p class=who>Hello, {}!</p>", escape(&who)));
    PAGE.replace("{service}", if service.is_empty() { "none" } else { &service })
        .replace("{revision}", if revision.is_empty() { "none" } else { &revision })
        .replace("{who}", &who.unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>It's running!</title>
<style>
:root{color-scheme:light dark;--ink:#17324d;--soft:#5b7690;--card:#ffffffd9;--sky:#eaf4fb;--sea:#2a7fb8}
@media(prefers-color-scheme:dark){:root{--ink:#e8f1f8;--soft:#9db4c8;--card:#12263ad9;--sky:#0b1a29;--sea:#2f8fd0}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--sky);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow:hidden}
svg{position:fixed;inset:auto 0 0 0;width:100%;height:38vh;color:var(--sea)}
main{position:relative;width:min(34rem,calc(100% - 2rem));padding:2.5rem;border-radius:1.25rem;background:var(--card);
backdrop-filter:blur(6px);box-shadow:0 1rem 3rem #17324d26}
h1{margin:0 0 .25rem;font-size:2.4rem;letter-spacing:-.02em;line-height:1.1}
p{margin:.25rem 0;color:var(--soft)}
.who{font-size:1.25rem;color:var(--ink)}
dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1rem;margin:1.5rem 0 0}
dt{color:var(--soft)}
dd{margin:0;font:600 .95rem ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
code{font:.9em ui-monospace,Menlo,Consolas,monospace}
</style>
</head>
<body>
<svg viewBox="0 0 1200 300" preserveAspectRatio="none" aria-hidden="true" fill="currentColor">
<path opacity=".25" d="M0 120C200 40 400 200 600 120s400-80 600 0v180H0z"/>
<path opacity=".5" d="M0 180c200-80 400 60 600-10s400-60 600 10v120H0z"/>
<path d="M0 240c200-50 400 40 600 0s400-40 600 0v60H0z"/>
</svg>
<main>
<h1>It's running!</h1>
{who}
<p>Your container is up and answers requests.</p>
<dl>
<dt>Service</dt><dd>{service}</dd>
<dt>Revision</dt><dd>{revision}</dd>
</dl>
<p>Ask for <code>/echo</code> to see the request as it arrived here.</p>
</main>
</body>
</html>
"#;
