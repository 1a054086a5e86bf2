//! Looks into messages by their descriptors: which fields are there, and what they would be with more in them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// A field number that no message has.
const UNKNOWN: u32 = 15_000;
const ANY: &str = ".google.protobuf.Any";

/// Messages by their full names, which begin with a dot.
pub(super) struct Messages(BTreeMap<String, DescriptorProto>);

/// One field of a message: its own name after the message's.
pub(super) type FieldName = (String, String);

impl Messages {
    pub(super) fn of(set: &FileDescriptorSet) -> Self {
        let mut all = BTreeMap::new();
        for file in &set.file {
            for message in &file.message_type {
                add(&format!(".{}", file.package()), message, &mut all);
            }
        }
        Self(all)
    }

    /// Every field of our own messages.
    pub(super) fn fields(&self) -> BTreeSet<FieldName> {
        let ours = self.0.iter().filter(|(name, _)| name.starts_with(".outrigger."));
        let fields = ours.flat_map(|(message, of)| {
            of.field.iter().map(move |field| (message.clone(), field.name().to_owned()))
        });
        fields.collect()
    }

    /// Notes which fields a message and those in it have.
    pub(super) fn note(&self, message: &str, bytes: &[u8], seen: &mut BTreeSet<FieldName>) {
        let mut see = |message: &str, field: &FieldDescriptorProto| {
            seen.insert((message.to_owned(), field.name().to_owned()));
        };
        self.walk(message, bytes, &mut see, &mut |_, same| same);
    }

    /// The message with another one in the place of each in it, the innermost first.
    pub(super) fn changed(
        &self,
        message: &str,
        bytes: &[u8],
        change: &mut dyn FnMut(&str, Bytes) -> Bytes,
    ) -> Bytes {
        self.walk(message, bytes, &mut |_, _| {}, change)
    }

    /// The message with fields that nobody knows in it and in every message that it holds.
    pub(super) fn with_unknown(&self, message: &str, bytes: &[u8]) -> Bytes {
        self.changed(message, bytes, &mut |message, bytes| match self.is_entry(message) {
            // An entry of a map is no message of its own.
            true => bytes,
            false => with_field(&with_number(&bytes, UNKNOWN, 7), UNKNOWN + 1, b"newer"),
        })
    }

    fn walk(
        &self,
        message: &str,
        bytes: &[u8],
        seen: &mut dyn FnMut(&str, &FieldDescriptorProto),
        change: &mut dyn FnMut(&str, Bytes) -> Bytes,
    ) -> Bytes {
        let of = self.0.get(message).unwrap_or_else(|| panic!("{message} is described"));
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut out = Vec::new();
        let mut inside = String::new();
        while !rest.is_empty() {
            let (tag, wire) = decode_key(&mut rest).expect("a key");
            encode_key(tag, wire, &mut out);
            let field = of.field.iter().find(|field| field.number() == tag as i32);
            let field = field.unwrap_or_else(|| panic!("{message} has a field {tag}"));
            seen(message, field);
            if wire != WireType::LengthDelimited {
                let before = rest.clone();
                skip_field(wire, tag, &mut rest, DecodeContext::default()).expect("a value");
                out.extend_from_slice(&before[..before.len() - rest.len()]);
                continue;
            }
            let length = decode_varint(&mut rest).expect("a length") as usize;
            let mut value = rest.split_to(length);
            if message == ANY && field.name() == "type_url" {
                let url = String::from_utf8(value.to_vec()).expect("UTF-8");
                inside = url.rsplit('/').next().map(|name| format!(".{name}")).unwrap_or_default();
            }
            let held = match field.r#type() {
                Type::Message => Some(field.type_name()),
                _ => (message == ANY && field.name() == "value").then_some(inside.as_str()),
            };
            if let Some(held) = held.filter(|held| self.0.contains_key(*held)) {
                value = self.walk(held, &value, seen, change);
            }
            encode_varint(value.len() as u64, &mut out);
            out.extend_from_slice(&value);
        }
        change(message, out.into())
    }

    fn is_entry(&self, message: &str) -> bool {
        let options = self.0.get(message).and_then(|of| of.options.as_ref());
        options.is_some_and(|options| options.map_entry())
    }
}

fn add(package: &str, message: &DescriptorProto, all: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{package}.{}", message.name());
    for nested in &message.nested_type {
        add(&name, nested, all);
    }
    all.insert(name, message.clone());
}

/// A field put after a message: of one that may be there once, the last one counts.
pub(super) fn with_field(message: &[u8], tag: u32, value: &[u8]) -> Bytes {
    let mut out = message.to_vec();
    encode_key(tag, WireType::LengthDelimited, &mut out);
    encode_varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out.into()
}

/// The same with a number.
pub(super) fn with_number(message: &[u8], tag: u32, value: u64) -> Bytes {
    let mut out = message.to_vec();
    encode_key(tag, WireType::Varint, &mut out);
    encode_varint(value, &mut out);
    out.into()
}
