//! serverless
