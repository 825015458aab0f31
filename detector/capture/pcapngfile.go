package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// The blocks of pcapng that matter here (draft-ietf-opsawg-pcapng).
const (
	blockSection        = 0x0a0d0d0a // reads the same in both byte orders
	blockInterface      = 1
	blockPacket         = 2 // obsolete
	blockSimplePacket   = 3
	blockEnhancedPacket = 6
)

// pcapngFile reads pcapng. Each section of a file has its own byte order and
// its own interfaces.
type pcapngFile struct {
	in         *input
	order      binary.ByteOrder
	interfaces []pcapngInterface
	last       time.Time // of the packet before; a simple packet has none of its own
}

// maxInterfaces bounds what a section can make us remember.
const maxInterfaces = 4096

type pcapngInterface struct {
	link       linkType
	name       string
	snapLength uint32 // zero: no limit
	second     uint64 // units of its time stamps in a second
	offset     int64  // seconds to add to its time stamps
}

func newPcapngFile(in *input) *pcapngFile {
	return &pcapngFile{in: in, last: time.Unix(0, 0).UTC()}
}

func (f *pcapngFile) next(rec *record) error {
	for {
		if err := f.in.begin(); err != nil {
			return err
		}
		kind, body, err := f.block()
		if err != nil {
			return err
		}
		switch kind {
		case blockSection:
			err = f.startSection(body)
		case blockInterface:
			err = f.addInterface(body)
		case blockPacket, blockEnhancedPacket:
			return f.packet(kind, body, rec)
		case blockSimplePacket:
			return f.simplePacket(body, rec)
		}
		if err != nil {
			return err
		}
	}
}

// block reads one block and returns its body, which is what stands between the
// header and the repeated length. The body is empty if the kind does not
// matter here; such a block may be of any length.
func (f *pcapngFile) block() (kind uint32, body []byte, err error) {
	const header, trailer = 8, 4
	head, err := f.in.peek(header + trailer)
	if err != nil {
		return 0, nil, err
	}
	if binary.BigEndian.Uint32(head) == blockSection {
		if f.order = byteOrderOf(head[header:]); f.order == nil {
			return 0, nil, errors.New("the section states no known byte order")
		}
	}
	kind = f.order.Uint32(head)
	length := f.order.Uint32(head[4:])
	if length < header+trailer || length%4 != 0 {
		return 0, nil, fmt.Errorf("no block is %d bytes long", length)
	}

	var block []byte
	switch {
	case !blockMatters(kind):
		if err := f.in.skip(int64(length) - trailer); err != nil {
			return 0, nil, err
		}
		block, err = f.in.take(trailer)
	case length > maxRecord:
		err = tooLongError(length)
	default:
		block, err = f.in.take(int(length))
	}
	if err != nil {
		return 0, nil, err
	}
	body, end := block[:len(block)-trailer], block[len(block)-trailer:]
	if again := f.order.Uint32(end); again != length {
		return 0, nil, fmt.Errorf("the block's two lengths, %d and %d, differ", length, again)
	}
	return kind, body[min(header, len(body)):], nil
}

func blockMatters(kind uint32) bool {
	switch kind {
	case blockSection, blockInterface, blockPacket, blockSimplePacket, blockEnhancedPacket:
		return true
	}
	return false
}

// byteOrderOf returns the byte order in which a section's magic is written,
// or nil if it is another number.
func byteOrderOf(magic []byte) binary.ByteOrder {
	const byteOrderMagic uint32 = 0x1a2b3c4d
	switch byteOrderMagic {
	case binary.LittleEndian.Uint32(magic):
		return binary.LittleEndian
	case binary.BigEndian.Uint32(magic):
		return binary.BigEndian
	}
	return nil
}

var errShortBlock = errors.New("the block is too short for its kind")

func (f *pcapngFile) startSection(body []byte) error {
	if len(body) < 16 {
		return errShortBlock
	}
	if major := f.order.Uint16(body[4:]); major != 1 {
		return fmt.Errorf("pcapng version %d.%d is not supported, only 1 is", major, f.order.Uint16(body[6:]))
	}
	f.interfaces = f.interfaces[:0]
	return nil
}

// addInterface reads an interface description. Packets refer to it by its
// place in the section.
func (f *pcapngFile) addInterface(body []byte) error {
	if len(body) < 8 {
		return errShortBlock
	}
	if len(f.interfaces) == maxInterfaces {
		return fmt.Errorf("the section has more than %d interfaces", maxInterfaces)
	}
	i := pcapngInterface{
		link:       linkType(f.order.Uint16(body)),
		snapLength: f.order.Uint32(body[4:]),
		second:     1_000_000,
	}
	if err := f.interfaceOptions(&i, body[8:]); err != nil {
		return err
	}
	f.interfaces = append(f.interfaces, i)
	return nil
}

func (f *pcapngFile) interfaceOptions(i *pcapngInterface, options []byte) error {
	const end, name, resolution, offset = 0, 2, 9, 14
	for len(options) >= 4 {
		code, length := f.order.Uint16(options), int(f.order.Uint16(options[2:]))
		if options = options[4:]; length > len(options) {
			return fmt.Errorf("option %d reaches beyond its block", code)
		}
		value := options[:length]
		options = options[min((length+3)&^3, len(options)):]
		switch {
		case code == end:
			return nil
		case code == name:
			i.name = safeName(value)
		case code == resolution && length == 1:
			i.second = unitsInSecond(value[0])
		case code == offset && length == 8:
			i.offset = int64(f.order.Uint64(value))
		case code == resolution || code == offset:
			return fmt.Errorf("option %d cannot be %d bytes long", code, length)
		}
	}
	return nil
}

// safeName returns the name of an interface if it can stand in a log line
// without being taken for something else, and otherwise nothing. The longest
// names in use are those of Windows devices, with 50 characters.
func safeName(name []byte) string {
	s := strings.TrimRight(string(name[:min(len(name), 65)]), "\x00")
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"'[]=`, r) }
	if len(s) > 64 || strings.ContainsFunc(s, odd) {
		return ""
	}
	return s
}

// unitsInSecond reads a time resolution: a negative power of 10, or of 2 if
// the highest bit is set. It returns 0 if that does not fit.
func unitsInSecond(resolution byte) uint64 {
	exponent := resolution & 0x7f
	if resolution&0x80 != 0 {
		return 1 << exponent // 0 from 64 on
	}
	if exponent > 19 {
		return 0
	}
	units := uint64(1)
	for range exponent {
		units *= 10
	}
	return units
}

// time converts a time stamp of the interface.
func (i *pcapngInterface) time(stamp uint64) (time.Time, error) {
	const endOf9999 = 253402300800 // RFC 3339 has no years beyond it
	if i.second == 0 {
		return time.Time{}, errors.New("the interface's time resolution is absurd")
	}
	seconds := stamp / i.second
	if seconds >= endOf9999 || i.offset >= endOf9999 || i.offset <= -endOf9999 {
		return time.Time{}, errAbsurdTime
	}
	at := int64(seconds) + i.offset
	if at < 0 || at >= endOf9999 {
		return time.Time{}, errAbsurdTime
	}
	hi, lo := bits.Mul64(stamp%i.second, 1e9) // below second * 1e9, so that Div64 cannot overflow
	nanoseconds, _ := bits.Div64(hi, lo, i.second)
	return time.Unix(at, int64(nanoseconds)).UTC(), nil
}

var errAbsurdTime = errors.New("the packet's time is absurd")

// packet reads a packet block, whose two kinds differ only in how they write
// the interface.
func (f *pcapngFile) packet(kind uint32, body []byte, rec *record) error {
	if len(body) < 20 {
		return errShortBlock
	}
	index := f.order.Uint32(body)
	if kind == blockPacket {
		index = uint32(f.order.Uint16(body))
	}
	i, err := f.lookUp(index)
	if err != nil {
		return err
	}
	at, err := i.time(uint64(f.order.Uint32(body[4:]))<<32 | uint64(f.order.Uint32(body[8:])))
	if err != nil {
		return err
	}
	f.last = at
	captured, length := f.order.Uint32(body[12:]), f.order.Uint32(body[16:])
	frame := body[20:]
	if captured > uint32(len(frame)) {
		return fmt.Errorf("the packet's %d bytes reach beyond its block", captured)
	}
	*rec = record{at: at, link: i.link, iface: i.name, frame: frame[:captured], length: wireLength(length, captured)}
	return nil
}

// simplePacket reads a block that holds only a length and a frame of the first
// interface. Its time is that of the packet before.
func (f *pcapngFile) simplePacket(body []byte, rec *record) error {
	if len(body) < 4 {
		return errShortBlock
	}
	i, err := f.lookUp(0)
	if err != nil {
		return err
	}
	length := f.order.Uint32(body)
	captured := min(length, uint32(len(body)-4))
	if i.snapLength > 0 {
		captured = min(captured, i.snapLength)
	}
	*rec = record{at: f.last, link: i.link, iface: i.name, frame: body[4:][:captured], length: wireLength(length, captured)}
	return nil
}

func (f *pcapngFile) lookUp(index uint32) (*pcapngInterface, error) {
	if uint64(index) >= uint64(len(f.interfaces)) {
		return nil, fmt.Errorf("interface %d is not described", index)
	}
	return &f.interfaces[index], nil
}
