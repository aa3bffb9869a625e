//! Reverse proxies: which are trusted, and what they say about the client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::head::RequestHead;

/// Reads a network in CIDR notation (RFC 4632, RFC 4291 §2.3). An address alone is a network of one.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "expected a network such as 10.0.0.0/8 or fd00::/8, or an address".to_owned())
}

/// The client's address: the peer's, or, if the peer is a trusted proxy, the last address in `X-Forwarded-For` that is
/// not a trusted proxy. Addresses further left are set by the client and are ignored. The port is 0 if it is not given.
pub(crate) fn client_address(trusted: &[IpNet], peer: SocketAddr, head: &RequestHead) -> SocketAddr {
    let mut client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !is_trusted(trusted, client.ip()) {
        return client;
    }
    // Each proxy appends the address of its own peer, to the last field or as one more field.
    for hop in values(head, "x-forwarded-for").into_iter().rev() {
        // This is not an address, so no trusted proxy wrote it.
        let Some(address) = address_of(hop) else { break };
        client = address;
        if !is_trusted(trusted, client.ip()) {
            break;
        }
    }
    client
}

/// Whether the client uses https to reach a trusted proxy. One https among several values is enough: a browser drops a
/// cookie that is `Secure` by mistake, but sends one that is not `Secure` by mistake in clear.
pub(crate) fn is_https(trusted: &[IpNet], peer: SocketAddr, head: &RequestHead) -> bool {
    let schemes = values(head, "x-forwarded-proto");
    is_trusted(trusted, peer.ip()) && schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case(b"https"))
}

/// The values of a list: one field may hold several, separated by commas.
fn values<'a>(head: &'a RequestHead, name: &'a str) -> Vec<&'a [u8]> {
    head.fields(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).collect()
}

fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    // A listener on [::] sees IPv4 addresses mapped to IPv6 ones.
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// An address with or without a port: `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]`,
/// `[2001:db8::7]:4711`.
fn address_of(hop: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bracketed {
        Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?),
        None => text.parse().ok()?,
    };
    Some(SocketAddr::new(address.to_canonical(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| parse_network(text).unwrap()).collect()
    }

    fn head(fields: &str) -> RequestHead {
        RequestHead::parse(format!("GET /feed HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).unwrap().unwrap()
    }

    fn client(trusted: &[&str], peer: &str, fields: &str) -> String {
        client_address(&networks(trusted), peer.parse().unwrap(), &head(fields)).to_string()
    }

    #[test]
    fn a_network_is_cidr_or_an_address() {
        for (text, network) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            (" fd00::/8 ", "fd00::/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(parse_network(text).unwrap().to_string(), network, "{text}");
        }
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "proxy",
            "10.0.0.0/8/8",
        ] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_a_trusted_proxy() {
        let proxies = &["127.0.0.0/8", "10.0.0.0/8"];
        for (fields, address) in [
            ("X-Forwarded-For: 203.0.113.9", "203.0.113.9:0"),
            ("X-Forwarded-For: 198.51.100.1, 203.0.113.9", "203.0.113.9:0"),
            ("X-Forwarded-For: 203.0.113.9, 10.1.1.1", "203.0.113.9:0"),
            ("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.9,10.1.1.1", "203.0.113.9:0"),
            ("X-Forwarded-For: 203.0.113.9:4711", "203.0.113.9:4711"),
            ("x-forwarded-for: 2001:db8::9", "[2001:db8::9]:0"),
            ("X-Forwarded-For: [2001:db8::9]", "[2001:db8::9]:0"),
            ("X-Forwarded-For: [2001:db8::9]:4711", "[2001:db8::9]:4711"),
            ("X-Forwarded-For: ::ffff:203.0.113.9", "203.0.113.9:0"),
            ("X-Forwarded-For: 10.2.2.2, 10.1.1.1", "10.2.2.2:0"),
            ("Host: x", "127.0.0.1:9999"),
        ] {
            assert_eq!(client(proxies, "127.0.0.1:9999", fields), address, "{fields}");
        }
    }

    #[test]
    fn an_untrusted_peer_is_not_believed() {
        assert_eq!(client(&["10.0.0.0/8"], "192.0.2.1:9", "X-Forwarded-For: 10.0.0.1"), "192.0.2.1:9");
        assert_eq!(client(&[], "127.0.0.1:9", "X-Forwarded-For: 203.0.113.9"), "127.0.0.1:9");
        assert!(!is_https(&[], "127.0.0.1:9".parse().unwrap(), &head("X-Forwarded-Proto: https")));
    }

    #[test]
    fn a_hop_that_is_not_an_address_ends_the_chain() {
        for fields in [
            "X-Forwarded-For: unknown",
            "X-Forwarded-For:",
            "X-Forwarded-For: ,,,",
            "X-Forwarded-For: 203.0.113.9, <script>",
            "X-Forwarded-For: 203.0.113.9, 999.1.1.1",
            "X-Forwarded-For: 203.0.113.9 10.0.0.1",
        ] {
            assert_eq!(client(&["127.0.0.1"], "127.0.0.1:9", fields), "127.0.0.1:9", "{fields}");
        }
        let raw = RequestHead::parse(b"GET / HTTP/1.1\r\nX-Forwarded-For: \xff\xfe\r\n\r\n").unwrap().unwrap();
        let peer = "127.0.0.1:9".parse().unwrap();
        assert_eq!(client_address(&networks(&["127.0.0.1"]), peer, &raw), peer);
        // A valid address to its right still counts.
        assert_eq!(client(&["127.0.0.1"], "127.0.0.1:9", "X-Forwarded-For: x, 127.0.0.1:5"), "127.0.0.1:5");
    }

    #[test]
    fn https_is_known_from_any_of_the_proxies() {
        let peer = "[::ffff:127.0.0.1]:9".parse().unwrap();
        for (fields, https) in [
            ("X-Forwarded-Proto: https", true),
            ("X-Forwarded-Proto: HTTPS", true),
            ("X-Forwarded-Proto: https, http", true),
            ("X-Forwarded-Proto: http", false),
            ("X-Forwarded-Proto: httpsx", false),
            ("Host: x", false),
        ] {
            assert_eq!(is_https(&networks(&["127.0.0.1"]), peer, &head(fields)), https, "{fields}");
        }
    }
}
