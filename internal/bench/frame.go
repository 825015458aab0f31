package main

import (
	"encoding/binary"
	"net/netip"
)

// targetAddr is what is probed.
var targetAddr = [4]byte{198, 51, 100, 1}

// trapPort is the port that every probe goes to.
const trapPort = 9

// Sources are taken from the half of 240.0.0.0/4 that lies below 248.0.0.0: the
// range is reserved, so a forged address is nobody's, and the kernel takes it
// for an ordinary unicast address.
const (
	sourceBase = 240 << 24
	sourceMask = 1<<27 - 1

	// Multiplying by an odd number permutes the addresses of the range, so
	// that neighbouring probes come from distant sources; unscatter is its
	// inverse modulo 2^32, and therefore modulo the size of the range.
	scatter   = 0x9e3779b1
	unscatter = 0x0e8b2f51
)

// sourceAddr returns the address of source number i; i is below 2^27.
func sourceAddr(i uint32) uint32 { return sourceBase | i*scatter&sourceMask }

// sourceIndex is the inverse of sourceAddr. It reports false for an address
// that no source has.
func sourceIndex(addr netip.Addr) (uint32, bool) {
	if !addr.Is4() {
		return 0, false
	}
	b := addr.As4()
	a := binary.BigEndian.Uint32(b[:])
	return a * unscatter & sourceMask, a&^sourceMask == sourceBase
}

const (
	ethernetLen = 14
	ipLen       = 20
	tcpLen      = 24 // with the MSS option
	frameLen    = ethernetLen + ipLen + tcpLen
)

// newFrame returns a SYN probe such as nmap sends, complete but for what
// frameWriter.set fills in.
func newFrame() []byte {
	f := make([]byte, 0, frameLen)
	f = append(f, targetMAC...)
	f = append(f, sourceMAC...)
	f = append(f, 0x08, 0x00) // IPv4

	f = append(f, 0x45, 0, 0, ipLen+tcpLen) // version, length
	f = append(f, 0, 0, 0, 0)               // id, fragment
	f = append(f, 52, 6, 0, 0)              // TTL, TCP, checksum
	f = append(f, 0, 0, 0, 0)               // source
	f = append(f, targetAddr[:]...)

	f = append(f, 0, 0, 0, trapPort)
	f = append(f, 0, 0, 0, 0, 0, 0, 0, 0)        // sequence, acknowledgement
	f = append(f, tcpLen/4<<4, 0x02, 1024>>8, 0) // length, SYN, window
	f = append(f, 0, 0, 0, 0)                    // checksum, urgent
	return append(f, 2, 4, 1460>>8, 1460&0xff)   // MSS
}

// A frameWriter turns frames of newFrame into the probe of one source after the
// other. It sums what is the same in all of them only once.
type frameWriter struct {
	ipSum, tcpSum uint32 // of everything but source address, source port and sequence number
}

func newFrameWriter() frameWriter {
	f := newFrame()
	ip, tcp := f[ethernetLen:][:ipLen], f[ethernetLen+ipLen:]
	return frameWriter{
		ipSum: sum16(ip),
		// The pseudo-header: addresses, protocol, length (RFC 9293, section 3.1).
		tcpSum: sum16(ip[12:20]) + 6 + tcpLen + sum16(tcp),
	}
}

// set makes f, a frame of newFrame, the probe of source number i.
func (w frameWriter) set(f []byte, i uint32) {
	src := sourceAddr(i)
	seq := i * scatter
	port := 1024 + i%60_000
	binary.BigEndian.PutUint32(f[26:], src)
	binary.BigEndian.PutUint16(f[34:], uint16(port))
	binary.BigEndian.PutUint32(f[38:], seq)

	srcSum := src>>16 + src&0xffff
	binary.BigEndian.PutUint16(f[24:], checksum(w.ipSum+srcSum))
	binary.BigEndian.PutUint16(f[50:], checksum(w.tcpSum+srcSum+port+seq>>16+seq&0xffff))
}

// sum16 adds up b as 16-bit words; its length is even.
func sum16(b []byte) uint32 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

// checksum folds a sum of 16-bit words into the Internet checksum (RFC 1071).
func checksum(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
