package detector

import (
	"net/netip"
	"strconv"
	"time"
)

// Proto is a transport protocol by its IANA number.
type Proto uint8

// The transport protocols that probes use.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// String returns the upper-case name, as PortSentry prints it.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return strconv.Itoa(int(p))
}

// Tri is a truth value that may be unknown, as PortSentry 2 logs it.
type Tri uint8

// The three values of a Tri; the zero value is Unset.
const (
	Unset Tri = iota
	False
	True
)

// TriOf returns True or False.
func TriOf(b bool) Tri {
	if b {
		return True
	}
	return False
}

// String returns "unset", "false" or "true".
func (t Tri) String() string {
	switch t {
	case False:
		return "false"
	case True:
		return "true"
	}
	return "unset"
}

// HeaderFacts are header fields that label and group probes. They never make
// evidence stronger: whoever sends a packet chooses all of them.
type HeaderFacts struct {
	Flags    TCPFlags // zero unless TCP
	TTL      uint8    // or IPv6 hop limit
	Window   uint16   // as on the wire, unscaled
	IPID     uint16   // zero for IPv6
	Sequence uint32   // TCP sequence number
}

// Proof says what a probe proves of the return path to its source.
type Proof uint8

// The strengths of proof, weakest first.
const (
	ProofNone      Proof = iota // anyone could have forged the source
	ProofHandshake              // the source completed a TCP handshake with us
)

// A Probe is one attempt by a source to reach a port. It holds only what was
// seen; nothing in it is a decision.
type Probe struct {
	At        time.Time      // arrival: from the kernel, the accept, or the pcap record
	Source    netip.AddrPort // who tried; IPv4-mapped addresses are already IPv4
	Target    netip.AddrPort // what was tried
	Proto     Proto
	Technique Technique
	Header    HeaderFacts
	IPOptions Tri // Unset for IPv6 and for accepted connections
	Proof     Proof
	Interface string // empty for traps and for captures that do not name one
}
