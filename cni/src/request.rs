//! What the runtime says in the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use rscni_types::types::{CNI_ARGS, CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, Cmd, ContainerId, InterfaceName};

use crate::error::CniError;

/// Longest container ID in bytes: it is part of a file name, which may have 255. Runtimes use 64.
const MAX_CONTAINER_ID: usize = 200;

/// One attachment of a pod: what ADD, DEL and CHECK are about.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    /// Absent only for DEL.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) pod: PodName,
}

impl Target {
    /// Name of the host side of its pair.
    pub(crate) fn host_interface(&self) -> String {
        api::names::host_interface(&self.container_id, &self.ifname)
    }
}

/// Which pod it is, as far as the runtime says (CNI_ARGS); empty otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Reads environment variables; a variable that is empty is not set.
pub(crate) struct Environment<F>(pub(crate) F);

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, CniError> {
        match (self.0)(name).filter(|value| !value.is_empty()).map(OsString::into_string).transpose() {
            Ok(value) => Ok(value),
            Err(value) => Err(CniError::Environment(format!("{name}={value:?} is not UTF-8"))),
        }
    }

    /// What `command` needs, everything that is missing named at once.
    pub(crate) fn target(&self, command: Cmd) -> Result<Target, CniError> {
        let (id, ifname, netns) = (self.get(CNI_CONTAINERID)?, self.get(CNI_IFNAME)?, self.get(CNI_NETNS)?);
        let mut missing = Vec::new();
        missing.extend(id.is_none().then_some(CNI_CONTAINERID));
        missing.extend((netns.is_none() && command != Cmd::Del).then_some(CNI_NETNS));
        missing.extend(ifname.is_none().then_some(CNI_IFNAME));
        let (Some(id), Some(ifname), true) = (id, ifname, missing.is_empty()) else {
            return Err(CniError::Environment(format!("missing in the environment: {}", missing.join(", "))));
        };
        let bad =
            |name: &str, value: &str, rule: &str| CniError::Environment(format!("{name}={value:?}: {rule}"));
        if id.len() > MAX_CONTAINER_ID || ContainerId::try_from(id.clone()).is_err() {
            let rule =
                format!("must match [a-zA-Z0-9][a-zA-Z0-9_.-]* and have at most {MAX_CONTAINER_ID} bytes");
            return Err(bad(CNI_CONTAINERID, &id, &rule));
        }
        if InterfaceName::try_from(ifname.clone()).is_err() || ifname.contains('%') {
            let rule = "must have 1 to 15 bytes, none of / : % or white space, and not be . or ..";
            return Err(bad(CNI_IFNAME, &ifname, rule));
        }
        let pod = match self.get(CNI_ARGS)? {
            Some(arguments) => pod_name(&arguments, command)?,
            None => PodName::default(),
        };
        Ok(Target { container_id: id, ifname, netns: netns.map(PathBuf::from), pod })
    }
}

/// `K=V;K=V`. Keys that are not ours belong to others in the chain.
fn pod_name(arguments: &str, command: Cmd) -> Result<PodName, CniError> {
    let mut pod = PodName::default();
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("K8S_POD_NAMESPACE", value)) => value.clone_into(&mut pod.namespace),
            Some(("K8S_POD_NAME", value)) => value.clone_into(&mut pod.name),
            Some(("K8S_POD_UID", value)) => value.clone_into(&mut pod.uid),
            Some(_) => {}
            None if command == Cmd::Del => {}
            None => {
                return Err(CniError::Environment(format!(
                    "{CNI_ARGS}: {pair:?} is not of the form KEY=VALUE"
                )));
            }
        }
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_found_among_other_arguments() {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=api-1;K8S_POD_UID=u=1;X=;";
        let expected =
            PodName { namespace: "shop".to_owned(), name: "api-1".to_owned(), uid: "u=1".to_owned() };
        assert_eq!(pod_name(arguments, Cmd::Add).unwrap(), expected);
        assert_eq!(pod_name("", Cmd::Add).unwrap(), PodName::default());
        assert!(pod_name("novalue", Cmd::Add).unwrap_err().to_string().contains("novalue"));
        assert!(pod_name("novalue", Cmd::Del).is_ok());
    }
}
