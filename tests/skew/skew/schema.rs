//! The messages themselves: what a recorded release has on the wire stays what it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

use super::Release;

pub(super) const FILE: &str = "descriptors.bin";
const SOURCES: [&str; 5] = [
    "envoy/service/discovery/v3/discovery.proto",
    "outrigger/identity/v1/identity.proto",
    "outrigger/mesh/v1/config.proto",
    "outrigger/mesh/v1/experiments.proto",
    "outrigger/mesh/v1/workload.proto",
];

/// What the sources of today say.
pub(super) fn present() -> FileDescriptorSet {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let mut set = protox::compile(SOURCES, [folder]).expect("the .proto files");
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}

fn recorded(release: &Release) -> FileDescriptorSet {
    let bytes = fs::read(release.folder.join(FILE)).expect("recorded descriptors");
    FileDescriptorSet::decode(&*bytes).expect("descriptors")
}

/// Everything that has a name, by its full one.
#[derive(Default)]
struct Names<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
    services: BTreeMap<String, &'a ServiceDescriptorProto>,
}

impl<'a> Names<'a> {
    fn of(set: &'a FileDescriptorSet) -> Self {
        let mut names = Self::default();
        for file in &set.file {
            let package = file.package();
            file.message_type.iter().for_each(|message| names.add(package, message));
            for one in &file.enum_type {
                names.enums.insert(format!("{package}.{}", one.name()), one);
            }
            for service in &file.service {
                names.services.insert(format!("{package}.{}", service.name()), service);
            }
        }
        names
    }

    fn add(&mut self, package: &str, message: &'a DescriptorProto) {
        let name = format!("{package}.{}", message.name());
        message.nested_type.iter().for_each(|nested| self.add(&name, nested));
        for one in &message.enum_type {
            self.enums.insert(format!("{name}.{}", one.name()), one);
        }
        self.messages.insert(name, message);
    }
}

/// What programs of both releases would read differently.
fn breaks(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let (old, new) = (Names::of(old), Names::of(new));
    let mut problems = Vec::new();
    for (name, message) in &old.messages {
        match new.messages.get(name) {
            None => problems.push(format!("{name} is gone")),
            Some(now) => message_breaks(name, message, now, &mut problems),
        }
    }
    for (name, values) in &old.enums {
        let Some(now) = new.enums.get(name) else {
            problems.push(format!("{name} is gone"));
            continue;
        };
        for value in &values.value {
            let same = now.value.iter().find(|other| other.number() == value.number());
            if same.is_none_or(|other| other.name() != value.name()) {
                problems.push(format!("{name}.{} is no longer {}", value.name(), value.number()));
            }
        }
    }
    for (name, service) in &old.services {
        let now = new.services.get(name);
        for method in &service.method {
            if now.is_none_or(|now| !now.method.contains(method)) {
                problems.push(format!("{name}/{} is another call", method.name()));
            }
        }
    }
    problems
}

fn message_breaks(
    name: &str,
    old: &DescriptorProto,
    new: &DescriptorProto,
    problems: &mut Vec<String>,
) {
    for field in &old.field {
        let number = field.number();
        let Some(now) = new.field.iter().find(|other| other.number() == number) else {
            let kept = new.reserved_range.iter().any(|r| (r.start()..r.end()).contains(&number));
            if !kept {
                problems.push(format!("{name}.{} is gone and not reserved", field.name()));
            }
            continue;
        };
        let says = |field: &FieldDescriptorProto, of: &DescriptorProto| {
            let choice = field.oneof_index.and_then(|i| of.oneof_decl.get(i as usize));
            let choice = choice.map(|choice| choice.name().to_owned());
            (
                field.name().to_owned(),
                field.r#type(),
                field.label(),
                field.type_name().to_owned(),
                choice,
            )
        };
        if says(field, old) != says(now, new) {
            problems.push(format!("{name}.{} ({number}) is another field", field.name()));
        }
    }
}

#[test]
fn no_message_of_a_recorded_release_is_read_otherwise() {
    let present = present();
    for release in Release::all() {
        assert_eq!(breaks(&recorded(&release), &present), [""; 0], "since {}", release.name);
    }
}

/// A change of a message, and the end of what is said about it.
type Break<'a> = (&'a dyn Fn(&mut DescriptorProto), &'a str);

#[test]
fn each_kind_of_break_is_noticed() {
    let present = present();
    let message = |set: &mut FileDescriptorSet, change: &dyn Fn(&mut DescriptorProto)| {
        let files = set.file.iter_mut().flat_map(|file| &mut file.message_type);
        files.filter(|message| message.name() == "Endpoint").for_each(change);
    };
    let field = |i: usize, change: fn(&mut FieldDescriptorProto)| {
        move |message: &mut DescriptorProto| change(&mut message.field[i])
    };
    let changes: [Break<'_>; 5] = [
        (&field(1, |f| f.number = Some(90)), "Endpoint.address is gone and not reserved"),
        (
            &field(1, |f| f.set_type(prost_types::field_descriptor_proto::Type::Bytes)),
            "Endpoint.address (2) is another field",
        ),
        (&field(1, |f| f.name = Some("at".to_owned())), "Endpoint.address (2) is another field"),
        (
            &field(0, |f| f.set_label(prost_types::field_descriptor_proto::Label::Optional)),
            "Endpoint.requires (1) is another field",
        ),
        (&|m| m.name = Some("Instance".to_owned()), "outrigger.mesh.v1.Endpoint is gone"),
    ];
    for (change, problem) in changes {
        let mut changed = present.clone();
        message(&mut changed, change);
        let found = breaks(&present, &changed);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(problem), "{found:?}");
    }
    let mut changed = present.clone();
    let enums = changed.file.iter_mut().flat_map(|file| &mut file.enum_type);
    enums.filter(|one| one.name() == "Health").for_each(|one| drop(one.value.pop()));
    let mut services = changed.file.iter_mut().flat_map(|file| &mut file.service);
    services.find(|s| s.name() == "Workload").expect("it").method[0].server_streaming = Some(false);
    let found = breaks(&present, &changed);
    assert_eq!(
        found,
        [
            "outrigger.mesh.v1.Health.HEALTH_UNHEALTHY is no longer 4",
            "outrigger.mesh.v1.Workload/Register is another call",
        ]
    );
    // What is new breaks nothing.
    assert!(breaks(&changed_back(&present), &present).is_empty());
}

/// An older release: without the newest field.
fn changed_back(present: &FileDescriptorSet) -> FileDescriptorSet {
    let mut older = present.clone();
    let messages = older.file.iter_mut().flat_map(|file| &mut file.message_type);
    messages.filter(|m| m.name() == "Endpoint").for_each(|m| drop(m.field.pop()));
    older
}
