//! Reverse proxies: whose word about a client is taken, and what they say of it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::head::Head;

/// A network in CIDR notation (RFC 4632, RFC 4291 §2.3); an address alone is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// An IPv4 address as the IPv6 one that it is mapped to, so that a listener on `[::]` sees no difference.
    first: u128,
    /// How many of the 128 bits count.
    bits: u32,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a network such as 10.0.0.0/8 or fd00::/8, or an address".to_owned();
        let (address, bits) = match text.trim().split_once('/') {
            None => (text.trim(), None),
            Some((address, bits)) => (address, Some(bits)),
        };
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => longest,
            // `+8` is a number to the standard library.
            Some(bits) if bits.bytes().all(|digit| digit.is_ascii_digit()) => bits.parse().map_err(|_| expected())?,
            Some(_) => return Err(expected()),
        };
        if bits > longest {
            return Err(format!("expected at most {longest} bits in such a network"));
        }
        Ok(Self { first: mapped(address), bits: bits + 128 - longest })
    }
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        // A network of no bits holds everything.
        (mapped(address) ^ self.first).checked_shr(128 - self.bits).unwrap_or(0) == 0
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Where a request comes from: its peer, or, where that is a trusted proxy, the last address in `X-Forwarded-For` that is
/// not one. Whatever stands to the left of that is only what the client itself has said. The port is 0 where it was not told.
pub fn client_address(trusted: &[Network], peer: SocketAddr, head: &Head) -> SocketAddr {
    let is_trusted = |address: &SocketAddr| trusted.iter().any(|network| network.contains(address.ip()));
    let mut client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !is_trusted(&client) {
        return client;
    }
    // Each proxy adds whom it was reached by at the end, to the last field or as a field more.
    let hops: Vec<&[u8]> = head.fields("x-forwarded-for").flat_map(|value| value.split(|&byte| byte == b',')).collect();
    for hop in hops.into_iter().rev() {
        // What is no address was not written by a proxy that we can go behind.
        let Some(address) = address_of(hop) else { break };
        client = address;
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

/// Whether the client speaks https to a trusted proxy. Any of several values suffices: a cookie that is `Secure` by mistake
/// is not kept by the browser, one that is not would be sent in clear.
pub fn is_https(trusted: &[Network], peer: SocketAddr, head: &Head) -> bool {
    trusted.iter().any(|network| network.contains(peer.ip()))
        && head
            .fields("x-forwarded-proto")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|scheme| scheme.trim_ascii().eq_ignore_ascii_case(b"https"))
}

/// An address with or without a port: `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:4711`.
fn address_of(hop: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(hop.trim_ascii()).ok()?;
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

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn head(fields: &str) -> Head {
        Head::parse(format!("GET /feed HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).unwrap().unwrap()
    }

    fn client(trusted: &[&str], peer: &str, fields: &str) -> String {
        client_address(&networks(trusted), peer.parse().unwrap(), &head(fields)).to_string()
    }

    #[test]
    fn a_network_holds_its_own_addresses_alone() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.9.9.9/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.7/32", "::ffff:192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "127.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network} holds {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network} does not hold {outside}");
        }
        assert!("::/0".parse::<Network>().unwrap().contains("203.0.113.9".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused() {
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
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_trusted_proxy() {
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
    fn what_a_stranger_says_of_itself_is_not_believed() {
        assert_eq!(client(&["10.0.0.0/8"], "192.0.2.1:9", "X-Forwarded-For: 10.0.0.1"), "192.0.2.1:9");
        assert_eq!(client(&[], "127.0.0.1:9", "X-Forwarded-For: 203.0.113.9"), "127.0.0.1:9");
        assert!(!is_https(&[], "127.0.0.1:9".parse().unwrap(), &head("X-Forwarded-Proto: https")));
    }

    #[test]
    fn what_is_no_address_ends_the_chain_and_harms_nobody() {
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
        let raw = Head::parse(b"GET / HTTP/1.1\r\nX-Forwarded-For: \xff\xfe\r\n\r\n").unwrap().unwrap();
        let peer = "127.0.0.1:9".parse().unwrap();
        assert_eq!(client_address(&networks(&["127.0.0.1"]), peer, &raw), peer);
        // Behind an address it stops there.
        assert_eq!(client(&["127.0.0.1"], "127.0.0.1:9", "X-Forwarded-For: x, 127.0.0.1:5"), "127.0.0.1:5");
    }

    #[test]
    fn https_is_what_any_of_the_proxies_says() {
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
