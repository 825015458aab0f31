package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// The two file formats are read here rather than by gopacket's pcapgo, because
// its pcapng reader (1.1.19) cannot be made safe from outside: an interface
// with a time resolution of 2^-64 makes it panic, a file of a hundred bytes
// makes it allocate 2 GiB, and an option that is too short is filled up with
// bytes of the one before. To rule those out one has to parse every block
// beforehand, which is most of a reader. Nor does it tell where in the file a
// fault is, which whoever has to mend the file needs.

// maxRecord is the longest record, or block of pcapng, that is read. The
// longest frame that tcpdump and dumpcap record by default is a quarter of it.
const maxRecord = 1 << 20

// record is one captured frame.
type record struct {
	at     time.Time // in UTC
	link   linkType
	iface  string // empty if the file does not name one
	frame  []byte // as captured; valid until the next record is read
	length int    // bytes on the wire, at least len(frame)
}

// captureFile reads the records of a pcap or pcapng file in their order. It
// holds maxRecord bytes however long the file is and whatever stands in it.
type captureFile struct {
	in     *input
	format interface{ next(rec *record) error }
}

// openCapture reads the file header from r.
func openCapture(r io.Reader) (*captureFile, error) {
	in := &input{r: bufio.NewReaderSize(r, maxRecord)}
	magic, err := in.r.Peek(4)
	switch {
	case len(magic) == 0 && errors.Is(err, io.EOF):
		return nil, errors.New("the capture is empty")
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read the capture: %w", err)
	case len(magic) == 4 && binary.BigEndian.Uint32(magic) == blockSection:
		return &captureFile{in: in, format: newPcapngFile(in)}, nil
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return nil, errors.New("the capture is compressed: pipe it through gzip -dc")
	}
	f, err := newPcapFile(in)
	if err != nil {
		return nil, err
	}
	return &captureFile{in: in, format: f}, nil
}

var errNoCapture = errors.New("the file is neither pcap nor pcapng")

// next reads the next frame into rec. At the end of the file it returns
// io.EOF, at a damaged record a *damageError; the file cannot be read beyond.
func (f *captureFile) next(rec *record) error {
	err := f.format.next(rec)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case f.in.err != nil:
		return fmt.Errorf("read the capture: %w", f.in.err)
	}
	return &damageError{record: f.in.records, start: f.in.start, err: err}
}

// damageError says where a capture makes no sense, and why. In pcapng, every
// block counts as a record.
type damageError struct {
	record int
	start  int64
	err    error
}

func (e *damageError) Error() string {
	return fmt.Sprintf("record %d at byte %d: %v", e.record, e.start, e.err)
}

// input is a file and the position in it.
type input struct {
	r       *bufio.Reader // its buffer holds any record as a whole
	offset  int64         // bytes read
	records int           // records begun
	start   int64         // where the last of them begins
	err     error         // what reading failed with, other than the end of the file
}

// begin notes that a record starts here. It returns io.EOF if the file ends.
func (in *input) begin() error {
	if _, err := in.r.Peek(1); err != nil {
		return in.failed(err)
	}
	in.records++
	in.start = in.offset
	return nil
}

// peek returns the next n bytes, at most maxRecord, without reading them. They
// are valid until the next call of any method.
func (in *input) peek(n int) ([]byte, error) {
	b, err := in.r.Peek(n)
	if errors.Is(err, io.EOF) {
		return nil, errCutShort
	}
	return b, in.failed(err)
}

// failed notes an error of the file itself, to tell it from damage.
func (in *input) failed(err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		in.err = err
	}
	return err
}

// errCutShort is what a capture ends with that was not closed properly, such
// as one that is still being written.
var errCutShort = errors.New("the file ends within it")

// take reads n bytes, at most maxRecord. They are valid until the next call of
// any method.
func (in *input) take(n int) ([]byte, error) {
	b, err := in.peek(n)
	if err != nil {
		return nil, err
	}
	_, err = in.r.Discard(n) // cannot fail: they are in the buffer
	in.offset += int64(n)
	return b, err
}

// skip reads n bytes, however many, and forgets them.
func (in *input) skip(n int64) error {
	skipped, err := io.CopyN(io.Discard, in.r, n)
	in.offset += skipped
	if errors.Is(err, io.EOF) {
		return errCutShort
	}
	return in.failed(err)
}

// What a classic capture starts with says how it counts fractions of a second.
const (
	pcapMicroseconds = 0xa1b2c3d4
	pcapNanoseconds  = 0xa1b23c4d
)

// pcapFile reads the classic format (draft-ietf-opsawg-pcap).
type pcapFile struct {
	in    *input
	order binary.ByteOrder
	link  linkType
	tick  int64 // nanoseconds in a unit of a record's fraction of a second
}

func newPcapFile(in *input) (*pcapFile, error) {
	header, err := in.take(24)
	if errors.Is(err, errCutShort) {
		return nil, errNoCapture
	}
	if err != nil {
		return nil, fmt.Errorf("read the capture: %w", err)
	}
	f := &pcapFile{in: in}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(header) {
		case pcapMicroseconds:
			f.order, f.tick = order, 1000
		case pcapNanoseconds:
			f.order, f.tick = order, 1
		}
	}
	if f.order == nil {
		return nil, errNoCapture
	}
	if major, minor := f.order.Uint16(header[4:]), f.order.Uint16(header[6:]); major != 2 || minor != 4 {
		return nil, fmt.Errorf("pcap version %d.%d is not supported, only 2.4 is", major, minor)
	}
	// The upper half tells of a frame check sequence, which trails the IP packet.
	f.link = linkType(f.order.Uint32(header[20:]))
	if !f.link.supported() {
		return nil, unsupportedLinkType(f.link)
	}
	return f, nil
}

func (f *pcapFile) next(rec *record) error {
	if err := f.in.begin(); err != nil {
		return err
	}
	header, err := f.in.take(16)
	if err != nil {
		return err
	}
	seconds, fraction := f.order.Uint32(header), f.order.Uint32(header[4:])
	captured, length := f.order.Uint32(header[8:]), f.order.Uint32(header[12:])
	// The snapshot length of the file header does not matter: some programs
	// write longer records.
	if captured > maxRecord {
		return tooLongError(captured)
	}
	frame, err := f.in.take(int(captured))
	if err != nil {
		return err
	}
	*rec = record{
		at:     time.Unix(int64(seconds), int64(fraction)*f.tick).UTC(),
		link:   f.link,
		frame:  frame,
		length: wireLength(length, captured),
	}
	return nil
}

func tooLongError(length uint32) error {
	return fmt.Errorf("its length of %d bytes is absurd; the longest read is %d", length, maxRecord)
}

// wireLength returns how long a frame was. No capture holds more than there
// was, but some programs leave the field empty.
func wireLength(stated, captured uint32) int {
	return int(min(max(stated, captured), maxRecord))
}
