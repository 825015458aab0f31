package detector

// TCPFlags are the eight flag bits of a TCP header (RFC 9293, section 3.1),
// as they stand in its fourteenth byte.
type TCPFlags uint8

// The TCP flag bits.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Has reports whether all bits of mask are set.
func (f TCPFlags) Has(mask TCPFlags) bool { return f&mask == mask }

// Technique names how a source probed.
type Technique uint8

// The techniques, named in the field's usual words.
const (
	TechniqueUnknown  Technique = iota
	TechniqueConnect            // a connection or datagram accepted by a trap
	TechniqueSYN                // SYN alone: half-open and connect scans look alike
	TechniqueFIN                // FIN alone
	TechniqueNULL               // no flag at all
	TechniqueXMAS               // FIN, PSH and URG
	TechniqueOddFlags           // any other combination without ACK and RST
	TechniqueUDP                // a datagram off the wire
)

var techniqueNames = [...]string{
	TechniqueUnknown:  "unknown",
	TechniqueConnect:  "connect",
	TechniqueSYN:      "SYN",
	TechniqueFIN:      "FIN",
	TechniqueNULL:     "NULL",
	TechniqueXMAS:     "XMAS",
	TechniqueOddFlags: "odd flags",
	TechniqueUDP:      "UDP",
}

// String returns the technique's name, such as "SYN" or "odd flags".
func (t Technique) String() string {
	if int(t) < len(techniqueNames) {
		return techniqueNames[t]
	}
	return techniqueNames[TechniqueUnknown]
}

// ClassifyTCP names the technique behind a segment that carries neither ACK
// nor RST, in the order of PortSentry 2.0.7: the first match wins. ECE and CWR
// disturb no match but NULL, because an ECN-capable client sets both on its
// SYN (RFC 3168, section 6.1.1).
func ClassifyTCP(f TCPFlags) Technique {
	switch {
	case f == 0:
		return TechniqueNULL
	case f.Has(FIN | URG | PSH):
		return TechniqueXMAS
	case f&(FIN|SYN|PSH|URG) == FIN:
		return TechniqueFIN
	case f&(FIN|SYN|PSH|URG) == SYN:
		return TechniqueSYN
	}
	return TechniqueOddFlags
}
