//! What version 2 shows and wants, against version 1.
