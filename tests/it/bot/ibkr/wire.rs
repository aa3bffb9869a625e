//! The messages of the TWS API, as far as orders need them: protobuf fields in frames (server version 213 and later).

use std::io::{Read, Write};
use std::net::TcpStream;

/// Message numbers on the wire are those of the text protocol plus this.
const PROTOBUF: u32 = 200;

/// A protobuf message that is being written.
#[derive(Clone, Default)]
pub(super) struct Proto(pub(super) Vec<u8>);

impl Proto {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    pub(super) fn int(mut self, tag: u64, value: i64) -> Self {
        self.varint(tag << 3);
        self.varint(value.cast_unsigned());
        self
    }

    pub(super) fn text(self, tag: u64, text: &str) -> Self {
        self.bytes(tag, text.as_bytes())
    }

    pub(super) fn double(mut self, tag: u64, value: f64) -> Self {
        self.varint(tag << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn message(self, tag: u64, message: &Self) -> Self {
        self.bytes(tag, &message.0)
    }

    pub(super) fn bytes(mut self, tag: u64, bytes: &[u8]) -> Self {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

/// A field that was read.
#[derive(Debug, Clone)]
enum Value {
    Int(i64),
    Double(f64),
    Bytes(Vec<u8>),
}

/// A message that was read.
#[derive(Debug)]
pub(super) struct Fields(Vec<(u64, Value)>);

impl Fields {
    pub(super) fn read(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Value::Int(varint(&mut bytes).cast_signed()),
                1 => Value::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    Value::Bytes(take(&mut bytes, length).to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        Self(fields)
    }

    fn get(&self, tag: u64) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == tag).map(|(_, value)| value)
    }

    pub(super) fn int(&self, tag: u64) -> i64 {
        if let Some(Value::Int(value)) = self.get(tag) { *value } else { 0 }
    }

    pub(super) fn double(&self, tag: u64) -> Option<f64> {
        if let Some(Value::Double(value)) = self.get(tag) { Some(*value) } else { None }
    }

    pub(super) fn text(&self, tag: u64) -> String {
        if let Some(Value::Bytes(bytes)) = self.get(tag) {
            String::from_utf8(bytes.clone()).unwrap()
        } else {
            String::new()
        }
    }

    pub(super) fn message(&self, tag: u64) -> Self {
        if let Some(Value::Bytes(bytes)) = self.get(tag) { Self::read(bytes) } else { Self(Vec::new()) }
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// Reads a frame with its length; `None` if the bot has disconnected.
pub(super) fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Reads a protobuf message with its number.
pub(super) fn read(stream: &mut TcpStream) -> Option<(u32, Fields)> {
    let frame = read_frame(stream)?;
    let (number, message) = frame.split_at(4);
    let number = u32::from_be_bytes(number.try_into().unwrap()).checked_sub(PROTOBUF).unwrap();
    Some((number, Fields::read(message)))
}

pub(super) fn write_frame(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    let mut frame = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(bytes);
    stream.write_all(&frame).ok()
}

pub(super) fn write(stream: &mut TcpStream, number: u32, message: &Proto) -> Option<()> {
    let mut bytes = (number + PROTOBUF).to_be_bytes().to_vec();
    bytes.extend(&message.0);
    write_frame(stream, &bytes)
}
