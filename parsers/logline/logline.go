// Package logline formats and parses the lines in which PortSentry 2 and
// PortSentry 1.2 report probes, and the records of the history of each. They are
// a contract with log readers that match them to the last byte, so nothing may be
// added to them.
package logline

import (
	"net/netip"
	"strconv"

	"github.com/portsnare/portsnare/detector"
)

// maxHost is the most bytes that the host field of a line holds, as many as a
// host name has.
const maxHost = 253

// A Scan is what a Scan line says: the report of one probe. It may be compared
// with ==.
type Scan struct {
	// Source is who probed, without a zone.
	Source netip.Addr
	// Host is the resolved name of the source, which its owner chose: never
	// take an address from it. Empty: the line repeats the address.
	Host      string
	Proto     detector.Proto
	Port      uint16 // that was tried
	Technique detector.Technique
	Flags     detector.TCPFlags // with TechniqueOddFlags, of shownFlags; else zero
	IPOptions detector.Tri

	// The outcome, as in [detector.Event].
	Ignored, Triggered, NoBlock, Blocked detector.Tri
}

// flagNames lists the flags that a line shows of an odd segment, in its order.
var flagNames = [...]struct {
	name string
	flag detector.TCPFlags
}{
	{"SYN", detector.SYN},
	{"FIN", detector.FIN},
	{"ACK", detector.ACK},
	{"PSH", detector.PSH},
	{"URG", detector.URG},
	{"RST", detector.RST},
}

// shownFlags are the bits of flagNames.
const shownFlags = detector.SYN | detector.FIN | detector.ACK | detector.PSH | detector.URG | detector.RST

// The words of the type field. All other techniques are spelt by their flags.
var typeTexts = [...]string{
	detector.TechniqueConnect: "Connect",
	detector.TechniqueSYN:     "TCP SYN/Normal scan",
	detector.TechniqueFIN:     "TCP FIN scan",
	detector.TechniqueNULL:    "TCP NULL scan",
	detector.TechniqueXMAS:    "TCP XMAS scan",
	detector.TechniqueUDP:     "UDP",
}

const (
	unknownType = "Unknown Type"
	flagsIntro  = unknownType + ": TCP Packet Flags:"
)

// TypeText returns PortSentry's words for a technique, without the flags that
// a line adds to "Unknown Type".
func TypeText(t detector.Technique) string {
	if int(t) < len(typeTexts) && typeTexts[t] != "" {
		return typeTexts[t]
	}
	return unknownType
}

// scanOf returns what the line for ev says. The event must tell of a probe.
func scanOf(ev *detector.Event) Scan {
	p := &ev.Probe
	s := Scan{
		Source:    sourceOf(ev),
		Host:      ev.Host,
		Proto:     p.Proto,
		Port:      p.Target.Port(),
		Technique: p.Technique,
		IPOptions: p.IPOptions,
		Ignored:   ev.Ignored,
		Triggered: ev.Triggered,
		NoBlock:   ev.NoBlock,
		Blocked:   ev.Blocked,
	}
	if TypeText(s.Technique) == unknownType {
		s.Technique = detector.TechniqueOddFlags
		s.Flags = p.Header.Flags & shownFlags
	}
	return s
}

// AppendScan appends the line for ev, without a newline, to dst. The event must
// tell of a probe. It allocates nothing but room in dst.
func AppendScan(dst []byte, ev *detector.Event) []byte {
	s := scanOf(ev)
	return s.Append(dst)
}

// Append appends the line, without a newline, to dst.
func (s *Scan) Append(dst []byte) []byte {
	dst = append(dst, "Scan from: ["...)
	start := len(dst)
	dst = s.Source.AppendTo(dst)
	address := dst[start:]
	dst = append(dst, "] ("...)
	dst = s.appendHost(dst, address)
	dst = append(dst, ") protocol: ["...)
	dst = append(dst, s.Proto.String()...)
	dst = append(dst, "] port: ["...)
	dst = strconv.AppendUint(dst, uint64(s.Port), 10)
	dst = append(dst, "] type: ["...)
	dst = appendType(dst, s.Technique, s.Flags)
	dst = append(dst, "] IP opts: ["...)
	dst = append(dst, OptionsText(s.IPOptions)...)
	dst = append(dst, "] ignored: ["...)
	dst = append(dst, s.Ignored.String()...)
	dst = append(dst, "] triggered: ["...)
	dst = append(dst, s.Triggered.String()...)
	dst = append(dst, "] noblock: ["...)
	dst = append(dst, s.NoBlock.String()...)
	dst = append(dst, "] blocked: ["...)
	dst = append(dst, s.Blocked.String()...)
	return append(dst, ']')
}

// appendHost appends the host field for a source with the given address: that
// address to the byte, for readers that compare the two, or its name.
func (s *Scan) appendHost(dst, address []byte) []byte {
	if s.Host == "" {
		return append(dst, address...)
	}
	start := len(dst)
	return reduceHost(append(dst, s.Host...), start)
}

// reduceHost makes what follows start safe as a host field. Its owner chose it,
// and could otherwise forge the fields after it.
func reduceHost(dst []byte, start int) []byte {
	if len(dst)-start > maxHost {
		dst = dst[:start+maxHost]
	}
	for i, c := range dst[start:] {
		if !isHostByte(c) {
			dst[start+i] = '?'
		}
	}
	return dst
}

func isHostByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '.', '_', ':', '%', '-', '?':
		return true
	}
	return false
}

// appendType appends PortSentry's words for a technique and, where they are
// "Unknown Type", the flags.
func appendType(dst []byte, t detector.Technique, flags detector.TCPFlags) []byte {
	text := TypeText(t)
	if text != unknownType {
		return append(dst, text...)
	}
	dst = append(dst, flagsIntro...)
	for _, f := range flagNames {
		dst = append(dst, ' ')
		dst = append(dst, f.name...)
		if flags.Has(f.flag) {
			dst = append(dst, ": 1"...)
		} else {
			dst = append(dst, ": 0"...)
		}
	}
	return dst
}

// OptionsText returns PortSentry's words for whether a packet had IP options.
func OptionsText(t detector.Tri) string {
	switch t {
	case detector.True:
		return "set"
	case detector.False:
		return "not set"
	}
	return "unknown"
}
