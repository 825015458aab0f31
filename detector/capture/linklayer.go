package capture

import (
	"encoding/binary"
	"fmt"

	"github.com/google/gopacket/layers"
)

// linkType says what a captured frame starts with, by its number in the
// registry that pcap and pcapng share (draft-ietf-opsawg-pcaplinktype).
type linkType uint16

const (
	linkNull     linkType = 0 // BSD loopback, in the byte order of the host that captured
	linkEthernet linkType = 1
	linkRawBSD   linkType = 12 // what some programs write for linkRaw
	linkRaw      linkType = 101
	linkLoop     linkType = 108 // OpenBSD loopback, in network byte order
	linkSLL      linkType = 113 // Linux "any" interface
	linkIPv4     linkType = 228
	linkIPv6     linkType = 229
	linkSLL2     linkType = 276 // the same with an interface number
)

const (
	etherTypeIPv4 = uint16(layers.EthernetTypeIPv4)
	etherTypeIPv6 = uint16(layers.EthernetTypeIPv6)
)

// unsupportedLinkType is the error about frames that we cannot take apart.
type unsupportedLinkType linkType

func (t unsupportedLinkType) Error() string {
	return fmt.Sprintf("link type %d is not supported: only Ethernet (1), BSD loopback (0, 108), "+
		"raw IP (101, 228, 229) and Linux cooked captures (113, 276) are", t)
}

func (t linkType) supported() bool {
	switch t {
	case linkNull, linkEthernet, linkRawBSD, linkRaw, linkLoop, linkSLL, linkIPv4, linkIPv6, linkSLL2:
		return true
	}
	return false
}

// linkHeader is what a frame says below its network header.
type linkHeader struct {
	size      int    // where the network header starts
	etherType uint16 // what starts there; zero for neither IP nor a VLAN tag
	outgoing  bool   // sent by the host that captured; only cooked captures tell
	group     bool   // sent to all or many hosts on the link
}

// parse returns the link-layer header of frame. It is not ok if t is not
// supported or frame ends within the header.
func (t linkType) parse(frame []byte) (h linkHeader, ok bool) {
	switch t {
	case linkEthernet:
		return parseEthernet(frame)
	case linkSLL:
		return parseSLL(frame)
	case linkSLL2:
		return parseSLL2(frame)
	case linkNull, linkLoop:
		return parseLoopback(frame)
	case linkRaw, linkRawBSD, linkIPv4, linkIPv6:
		return parseRaw(frame)
	}
	return linkHeader{}, false
}

func parseEthernet(frame []byte) (linkHeader, bool) {
	if len(frame) < 14 {
		return linkHeader{}, false
	}
	return linkHeader{size: 14, etherType: binary.BigEndian.Uint16(frame[12:]), group: frame[0]&1 != 0}, true
}

func parseSLL(frame []byte) (linkHeader, bool) {
	if len(frame) < 16 {
		return linkHeader{}, false
	}
	etherType := binary.BigEndian.Uint16(frame[14:])
	return cookedHeader(16, etherType, binary.BigEndian.Uint16(frame)), true
}

func parseSLL2(frame []byte) (linkHeader, bool) {
	if len(frame) < 20 {
		return linkHeader{}, false
	}
	return cookedHeader(20, binary.BigEndian.Uint16(frame), uint16(frame[10])), true
}

// cookedHeader reads the packet type, which Linux fills in for cooked captures.
func cookedHeader(size int, etherType, packetType uint16) linkHeader {
	const toAll, toMany, outgoing = 1, 2, 4
	return linkHeader{
		size:      size,
		etherType: etherType,
		outgoing:  packetType == outgoing,
		group:     packetType == toAll || packetType == toMany,
	}
}

// parseLoopback reads an address family, which is a small number: whichever
// byte order makes it small is the right one.
func parseLoopback(frame []byte) (linkHeader, bool) {
	if len(frame) < 4 {
		return linkHeader{}, false
	}
	family := min(binary.LittleEndian.Uint32(frame), binary.BigEndian.Uint32(frame))
	h := linkHeader{size: 4}
	switch family {
	case 2:
		h.etherType = etherTypeIPv4
	case 10, 24, 28, 30: // Linux; NetBSD and OpenBSD; FreeBSD; macOS
		h.etherType = etherTypeIPv6
	}
	return h, true
}

func parseRaw(frame []byte) (linkHeader, bool) {
	if len(frame) == 0 {
		return linkHeader{}, false
	}
	switch frame[0] >> 4 {
	case 4:
		return linkHeader{etherType: etherTypeIPv4}, true
	case 6:
		return linkHeader{etherType: etherTypeIPv6}, true
	}
	return linkHeader{}, true
}
