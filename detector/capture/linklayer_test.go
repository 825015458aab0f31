package capture

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// frameOn puts a link-layer header in front of packet, as a host that receives
// it would see it.
func frameOn(link linkType, etherType uint16, packet []byte) []byte {
	ethernet := append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}, byte(etherType>>8), byte(etherType))
	family := byte(2)
	if etherType == etherTypeIPv6 {
		family = 10
	}
	headers := map[linkType][]byte{
		linkEthernet: ethernet,
		linkNull:     {family, 0, 0, 0},
		linkLoop:     {0, 0, 0, family},
		linkSLL:      append([]byte{0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0}, byte(etherType>>8), byte(etherType)),
		linkSLL2: append([]byte{byte(etherType >> 8), byte(etherType), 0, 0, 0, 0, 0, 3, 0, 1, 0, 6},
			2, 0, 0, 0, 0, 1, 0, 0),
	}
	return append(headers[link], packet...)
}

func TestLinkHeader(t *testing.T) {
	four, six := []byte{0x45, 0}, []byte{0x60, 0}
	ethernet, sll, sll2 := frameOn(linkEthernet, etherTypeIPv4, four), frameOn(linkSLL, etherTypeIPv6, six), frameOn(linkSLL2, etherTypeIPv4, four)
	tests := map[string]struct {
		link linkType
		in   []byte
		want linkHeader
		bad  bool
	}{
		"ethernet":               {link: linkEthernet, in: ethernet, want: linkHeader{size: 14, etherType: etherTypeIPv4}},
		"ethernet, group":        {link: linkEthernet, in: patch(ethernet, 0, 1), want: linkHeader{size: 14, etherType: etherTypeIPv4, group: true}},
		"ethernet, VLAN":         {link: linkEthernet, in: patch(ethernet, 12, 0x81, 0), want: linkHeader{size: 14, etherType: 0x8100}},
		"ethernet, header only":  {link: linkEthernet, in: ethernet[:14], want: linkHeader{size: 14, etherType: etherTypeIPv4}},
		"ethernet, cut":          {link: linkEthernet, in: ethernet[:13], bad: true},
		"SLL":                    {link: linkSLL, in: sll, want: linkHeader{size: 16, etherType: etherTypeIPv6}},
		"SLL, broadcast":         {link: linkSLL, in: patch(sll, 1, 1), want: linkHeader{size: 16, etherType: etherTypeIPv6, group: true}},
		"SLL, multicast":         {link: linkSLL, in: patch(sll, 1, 2), want: linkHeader{size: 16, etherType: etherTypeIPv6, group: true}},
		"SLL, for another host":  {link: linkSLL, in: patch(sll, 1, 3), want: linkHeader{size: 16, etherType: etherTypeIPv6}},
		"SLL, outgoing":          {link: linkSLL, in: patch(sll, 1, 4), want: linkHeader{size: 16, etherType: etherTypeIPv6, outgoing: true}},
		"SLL, cut":               {link: linkSLL, in: sll[:15], bad: true},
		"SLL2":                   {link: linkSLL2, in: sll2, want: linkHeader{size: 20, etherType: etherTypeIPv4}},
		"SLL2, multicast":        {link: linkSLL2, in: patch(sll2, 10, 2), want: linkHeader{size: 20, etherType: etherTypeIPv4, group: true}},
		"SLL2, outgoing":         {link: linkSLL2, in: patch(sll2, 10, 4), want: linkHeader{size: 20, etherType: etherTypeIPv4, outgoing: true}},
		"SLL2, cut":              {link: linkSLL2, in: sll2[:19], bad: true},
		"null, little endian":    {link: linkNull, in: []byte{2, 0, 0, 0}, want: linkHeader{size: 4, etherType: etherTypeIPv4}},
		"null, big endian":       {link: linkNull, in: []byte{0, 0, 0, 2}, want: linkHeader{size: 4, etherType: etherTypeIPv4}},
		"null, OpenBSD's IPv6":   {link: linkNull, in: []byte{24, 0, 0, 0}, want: linkHeader{size: 4, etherType: etherTypeIPv6}},
		"null, FreeBSD's IPv6":   {link: linkNull, in: []byte{28, 0, 0, 0}, want: linkHeader{size: 4, etherType: etherTypeIPv6}},
		"null, macOS's IPv6":     {link: linkNull, in: []byte{0, 0, 0, 30}, want: linkHeader{size: 4, etherType: etherTypeIPv6}},
		"null, another family":   {link: linkNull, in: []byte{7, 0, 0, 0}, want: linkHeader{size: 4}},
		"null, cut":              {link: linkNull, in: []byte{2, 0, 0}, bad: true},
		"loop":                   {link: linkLoop, in: []byte{0, 0, 0, 24}, want: linkHeader{size: 4, etherType: etherTypeIPv6}},
		"raw, IPv4":              {link: linkRaw, in: four, want: linkHeader{etherType: etherTypeIPv4}},
		"raw, IPv6":              {link: linkRaw, in: six, want: linkHeader{etherType: etherTypeIPv6}},
		"raw, neither":           {link: linkRaw, in: []byte{0x50}},
		"raw, empty":             {link: linkRaw, bad: true},
		"raw, by its BSD number": {link: linkRawBSD, in: four, want: linkHeader{etherType: etherTypeIPv4}},
		"IPv4":                   {link: linkIPv4, in: four, want: linkHeader{etherType: etherTypeIPv4}},
		"IPv6":                   {link: linkIPv6, in: six, want: linkHeader{etherType: etherTypeIPv6}},
		"unsupported":            {link: 105, in: make([]byte, 100), bad: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := tt.link.parse(tt.in)
			if ok == tt.bad {
				t.Fatalf("parse(% x) ok = %v, want %v", tt.in, ok, !tt.bad)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(linkHeader{})); diff != "" {
				t.Errorf("parse(% x) (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

func TestUnsupportedLinkType(t *testing.T) {
	msg := unsupportedLinkType(105).Error()
	for _, want := range []string{"105", "Ethernet", "276"} {
		if !strings.Contains(msg, want) {
			t.Errorf("error %q does not name %s", msg, want)
		}
	}
}

// FuzzLinkLayer: the network header starts within the frame, and what parses
// is of a supported type.
func FuzzLinkLayer(f *testing.F) {
	for _, link := range []linkType{linkNull, linkEthernet, linkRawBSD, linkRaw, linkLoop, linkSLL, linkIPv4, linkIPv6, linkSLL2, 105} {
		f.Add(uint16(link), frameOn(link, etherTypeIPv4, []byte{0x45, 0}))
		f.Add(uint16(link), frameOn(link, etherTypeIPv6, []byte{0x60, 0}))
		f.Add(uint16(link), []byte{})
	}
	f.Fuzz(func(t *testing.T, link uint16, frame []byte) {
		h, ok := linkType(link).parse(frame)
		if h.size > len(frame) || ok && !linkType(link).supported() {
			t.Errorf("link type %d: % x: %+v, %v", link, frame, h, ok)
		}
		if ok && linkType(link) == linkEthernet && h.etherType != binary.BigEndian.Uint16(frame[12:]) {
			t.Errorf("ethernet: % x: EtherType %#x", frame, h.etherType)
		}
	})
}
