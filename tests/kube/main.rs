//! The suite of [`kube`].

mod kube;
