//! Hubble's filters: a flow is shown if any filter of the whitelist fits (or there is none) and none of the blacklist does.
//! Within a filter all fields must fit, within a field any value.

use std::net::IpAddr;

use api::flow::layer4::Protocol as L4;
use api::flow::layer7::Record;
use api::flow::{Endpoint, Flow, FlowFilter, FlowType};
use ipnet::IpNet;
use regex::Regex;

/// A filter that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filter {field}: {value:?}: {problem}")]
pub struct FilterError {
    field: &'static str,
    value: String,
    problem: String,
}

/// Filters of one question, read once.
#[derive(Debug, Default)]
pub struct Filters {
    whitelist: Vec<Filter>,
    blacklist: Vec<Filter>,
}

#[derive(Debug, Default)]
struct Filter {
    source_ip: Vec<IpNet>,
    destination_ip: Vec<IpNet>,
    source_pod: Vec<(String, String)>,
    destination_pod: Vec<(String, String)>,
    verdict: Vec<i32>,
    protocol: Vec<String>,
    source_port: Vec<u32>,
    destination_port: Vec<u32>,
    http_method: Vec<String>,
    http_path: Vec<Regex>,
    node_name: Vec<String>,
}

impl Filters {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// The field and value that make no sense.
    pub fn new(whitelist: &[FlowFilter], blacklist: &[FlowFilter]) -> Result<Self, FilterError> {
        let read = |filters: &[FlowFilter]| filters.iter().map(Filter::new).collect::<Result<Vec<_>, _>>();
        Ok(Self { whitelist: read(whitelist)?, blacklist: read(blacklist)? })
    }

    /// Whether the flow is asked for.
    pub fn accept(&self, flow: &Flow) -> bool {
        let listed = self.whitelist.is_empty() || self.whitelist.iter().any(|filter| filter.fits(flow));
        listed && !self.blacklist.iter().any(|filter| filter.fits(flow))
    }
}

impl Filter {
    fn new(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self {
            source_ip: each("source_ip", &filter.source_ip, network)?,
            destination_ip: each("destination_ip", &filter.destination_ip, network)?,
            source_pod: each("source_pod", &filter.source_pod, pod)?,
            destination_pod: each("destination_pod", &filter.destination_pod, pod)?,
            verdict: filter.verdict.clone(),
            protocol: filter.protocol.iter().map(|name| name.to_ascii_lowercase()).collect(),
            source_port: each("source_port", &filter.source_port, port)?,
            destination_port: each("destination_port", &filter.destination_port, port)?,
            http_method: filter.http_method.iter().map(|method| method.to_ascii_uppercase()).collect(),
            http_path: each("http_path", &filter.http_path, |text| {
                Regex::new(text).map_err(|e| e.to_string())
            })?,
            node_name: filter.node_name.clone(),
        })
    }

    fn fits(&self, flow: &Flow) -> bool {
        let addresses = flow.ip.as_ref();
        let ports = ports(flow);
        let http = flow.l7.as_ref().and_then(|l7| l7.record.as_ref()).map(|Record::Http(http)| http);
        any(&self.verdict, |verdict| *verdict == flow.verdict)
            && any(&self.source_pod, |name| is_pod(name, flow.source.as_ref()))
            && any(&self.destination_pod, |name| is_pod(name, flow.destination.as_ref()))
            && any(&self.source_ip, |network| addresses.is_some_and(|ip| contains(network, &ip.source)))
            && any(&self.destination_ip, |network| {
                addresses.is_some_and(|ip| contains(network, &ip.destination))
            })
            && any(&self.source_port, |port| ports.is_some_and(|(source, _)| source == *port))
            && any(&self.destination_port, |port| ports.is_some_and(|(_, destination)| destination == *port))
            && any(&self.protocol, |name| is_protocol(name, flow))
            && any(&self.http_method, |method| http.is_some_and(|http| http.method == *method))
            && any(&self.http_path, |path| http.is_some_and(|http| path.is_match(path_of(&http.url))))
            && any(&self.node_name, |name| *name == flow.node_name)
    }
}

/// No value given: everything fits.
fn any<T>(values: &[T], fits: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(fits)
}

fn each<T>(
    field: &'static str,
    values: &[String],
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, FilterError> {
    let one =
        |value: &String| read(value).map_err(|problem| FilterError { field, value: value.clone(), problem });
    values.iter().map(one).collect()
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from).ok();
    address.or_else(|| text.parse().ok()).ok_or_else(|| "neither an address nor a network".to_owned())
}

fn port(text: &str) -> Result<u32, String> {
    text.parse::<u16>().map(u32::from).map_err(|_| "no port".to_owned())
}

/// "namespace/name"; as Hubble does, a name without a namespace is one of `default`.
fn pod(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name.contains('/') {
        return Err("give NAMESPACE/NAME, or NAMESPACE/ for all of a namespace".to_owned());
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

/// As Hubble does, a name stands for all that begin with it.
fn is_pod((namespace, name): &(String, String), endpoint: Option<&Endpoint>) -> bool {
    endpoint.is_some_and(|endpoint| {
        endpoint.namespace == *namespace && endpoint.pod_name.starts_with(name.as_str())
    })
}

fn contains(network: &IpNet, address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| network.contains(&address))
}

fn ports(flow: &Flow) -> Option<(u32, u32)> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        L4::Tcp(tcp) => Some((tcp.source_port, tcp.destination_port)),
        L4::Udp(udp) => Some((udp.source_port, udp.destination_port)),
        L4::Sctp(sctp) => Some((sctp.source_port, sctp.destination_port)),
        L4::IcmPv4(_) | L4::IcmPv6(_) => None,
    }
}

fn is_protocol(name: &str, flow: &Flow) -> bool {
    let l4 = flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref());
    match name {
        "http" => flow.r#type() == FlowType::L7,
        "tcp" => matches!(l4, Some(L4::Tcp(_))),
        "udp" => matches!(l4, Some(L4::Udp(_))),
        "sctp" => matches!(l4, Some(L4::Sctp(_))),
        "icmp" | "icmpv4" => matches!(l4, Some(L4::IcmPv4(_))),
        "icmpv6" => matches!(l4, Some(L4::IcmPv6(_))),
        _ => false,
    }
}

/// Path and query of a URL as [`super::request`] writes them.
fn path_of(url: &str) -> &str {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    rest.find('/').map_or("", |at| &rest[at..])
}

#[cfg(test)]
mod tests {
    use api::flow::{Http, Ip, Layer4, Layer7, Tcp, Verdict};

    use super::*;

    fn flow() -> Flow {
        let end = |namespace: &str, pod: &str| {
            Some(Endpoint { namespace: namespace.into(), pod_name: pod.into(), ..Endpoint::default() })
        };
        Flow {
            verdict: Verdict::Dropped.into(),
            ip: Some(Ip { source: "10.1.0.2".into(), destination: "10.2.0.3".into(), ..Ip::default() }),
            l4: Some(Layer4 {
                protocol: Some(L4::Tcp(Tcp { source_port: 4000, destination_port: 80, flags: None })),
            }),
            source: end("production", "frontend-1"),
            destination: end("production", "api"),
            r#type: FlowType::L7.into(),
            node_name: "node-1".into(),
            l7: Some(Layer7 {
                record: Some(Record::Http(Http {
                    method: "GET".into(),
                    url: "http://api/v1/x?y=1".into(),
                    ..Http::default()
                })),
                ..Layer7::default()
            }),
            ..Flow::default()
        }
    }

    fn fits(filter: FlowFilter) -> bool {
        Filters::new(&[filter], &[]).unwrap().accept(&flow())
    }

    #[test]
    fn each_field_can_fit_and_not() {
        let set = |change: fn(&mut FlowFilter, String), value: &str| {
            let mut filter = FlowFilter::default();
            change(&mut filter, value.to_owned());
            filter
        };
        type Case = (fn(&mut FlowFilter, String), &'static [&'static str], &'static [&'static str]);
        let cases: [Case; 9] = [
            (
                |f, v| f.source_pod.push(v),
                &["production/", "production/frontend", "production/frontend-1"],
                &["default/", "production/api", "frontend-1"],
            ),
            (|f, v| f.destination_pod.push(v), &["production/api"], &["production/frontend-1"]),
            (|f, v| f.source_ip.push(v), &["10.1.0.2", "10.1.0.0/16"], &["10.2.0.3", "10.2.0.0/16"]),
            (|f, v| f.destination_ip.push(v), &["10.2.0.3"], &["10.1.0.2"]),
            (|f, v| f.protocol.push(v), &["TCP", "http"], &["udp", "nonsense"]),
            (|f, v| f.source_port.push(v), &["4000"], &["80"]),
            (|f, v| f.destination_port.push(v), &["80"], &["4000"]),
            (|f, v| f.http_path.push(v), &["^/v1/", "y=1$"], &["^/v2", "http:"]),
            (|f, v| f.node_name.push(v), &["node-1"], &["node"]),
        ];
        for (change, fitting, others) in cases {
            for value in fitting {
                assert!(fits(set(change, value)), "{value}");
            }
            for value in others {
                assert!(!fits(set(change, value)), "{value}");
            }
        }
        assert!(fits(FlowFilter { verdict: vec![Verdict::Dropped.into()], ..FlowFilter::default() }));
        assert!(!fits(FlowFilter { verdict: vec![Verdict::Forwarded.into()], ..FlowFilter::default() }));
        assert!(fits(FlowFilter { http_method: vec!["get".into()], ..FlowFilter::default() }));
    }

    #[test]
    fn filters_are_alternatives_and_fields_are_not() {
        let from = |pod: &str| FlowFilter { source_pod: vec![pod.into()], ..FlowFilter::default() };
        let both = FlowFilter { destination_port: vec!["81".into()], ..from("production/") };
        assert!(!Filters::new(&[both], &[]).unwrap().accept(&flow()));
        assert!(Filters::new(&[from("default/"), from("production/")], &[]).unwrap().accept(&flow()));
        assert!(!Filters::new(&[from("production/")], &[from("production/front")]).unwrap().accept(&flow()));
        assert!(Filters::new(&[], &[from("default/")]).unwrap().accept(&flow()));
    }

    #[test]
    fn nonsense_is_named() {
        let refused = |filter: FlowFilter| Filters::new(&[], &[filter]).unwrap_err().field;
        assert_eq!(refused(FlowFilter { source_ip: vec!["x".into()], ..FlowFilter::default() }), "source_ip");
        assert_eq!(refused(FlowFilter { http_path: vec!["(".into()], ..FlowFilter::default() }), "http_path");
        assert_eq!(
            refused(FlowFilter { source_port: vec!["99999".into()], ..FlowFilter::default() }),
            "source_port"
        );
        assert_eq!(
            refused(FlowFilter { source_pod: vec!["a/b/c".into()], ..FlowFilter::default() }),
            "source_pod"
        );
    }
}
