//! The harness of the end-to-end tests: a server as a child process, and clients that know it only from outside.
