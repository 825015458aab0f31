package capture

import "encoding/binary"

// checksumState says how far a packet's checksums can be relied on.
type checksumState uint8

const (
	checksumVerify  checksumState = iota // must be right, or the host drops the packet
	checksumTrusted                      // the kernel vouches for it, or has yet to fill it in
	checksumLenient                      // right, or what checksum offload leaves in a capture of sent packets
)

// headerChecksumOK verifies the header even if the kernel vouches for the
// packet, as Linux does; a captured zero is a checksum left to the hardware.
func (n *network) headerChecksumOK(header []byte) bool {
	if n.checksum == checksumLenient && header[10] == 0 && header[11] == 0 {
		return true
	}
	return fold(sum(0, header)) == 0xffff
}

// verify checks the transport checksum over segment, in which field is the
// checksum as sent. What cannot be checked passes.
func (n *network) verify(segment, field []byte) error {
	if n.checksum == checksumTrusted || n.cut > 0 {
		return nil
	}
	pseudo := n.pseudoSum(len(segment))
	if fold(sum(pseudo, segment)) == 0xffff {
		return nil
	}
	if n.checksum == checksumLenient && binary.BigEndian.Uint16(field) == fold(pseudo) {
		return nil // Linux leaves this sum for the network card to complete
	}
	return dropChecksum
}

// pseudoSum is the sum over the pseudo header (RFC 9293, section 3.1; RFC
// 8200, section 8.1).
func (n *network) pseudoSum(length int) uint64 {
	s := uint64(n.next) + uint64(length)
	if n.source.Is4() {
		source, target := n.source.As4(), n.target.As4()
		return sum(sum(s, source[:]), target[:])
	}
	source, target := n.source.As16(), n.target.As16()
	return sum(sum(s, source[:]), target[:])
}

// sum adds the big-endian 16-bit words of data to s, the internet checksum
// before folding (RFC 1071). s cannot overflow within one packet.
func sum(s uint64, data []byte) uint64 {
	for ; len(data) >= 4; data = data[4:] {
		s += uint64(binary.BigEndian.Uint32(data))
	}
	if len(data) >= 2 {
		s += uint64(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		s += uint64(data[0]) << 8
	}
	return s
}

// fold adds the carries of s into 16 bits.
func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
