package capture

import (
	"context"
	"errors"
	"io"

	"github.com/portsnare/portsnare/detector"
)

// ReplayStats say what became of the packets of a capture. Each became a probe
// or is counted under one reason why not.
type ReplayStats struct {
	Packets uint64 // read
	Probes  uint64 // handed to the observer

	NotProbes uint64 // segments with ACK or RST
	NotLocal  uint64 // to an address that is not the host's, to many hosts at once, or sent by the host itself

	Undecoded map[string]uint64 // packets by why they are neither segment nor datagram
}

// Replay hands every probe in a capture, pcap or pcapng, to observe, in the
// order of the file and with the times it states. Probes are the packets to a
// local address of survey that Sniff would take for probes.
//
// After a damaged record, such as the last one of a file that was cut short,
// nothing can be read. Then Replay returns an error that names the record and
// its position, and all probes before it have been observed. Frames of an
// unsupported link type are left out, and Replay returns an error that names
// it once everything else has been observed. It also ends with an error if r
// cannot be read or is no capture, and with that of ctx when ctx ends.
func Replay(ctx context.Context, r io.Reader, survey *Survey, observe Observer) (ReplayStats, error) {
	stats := ReplayStats{Undecoded: make(map[string]uint64)}
	frames, err := newFrameReader(r)
	if err != nil {
		return stats, err
	}
	err = frames.each(ctx, func(f *decodedFrame) {
		stats.Packets++
		switch {
		case f.drop != notDropped:
			stats.Undecoded[f.drop.String()]++
		case f.link.outgoing || f.link.group || !contains(survey.local, f.packet.Target.Addr()):
			stats.NotLocal++
		case !isProbe(&f.packet):
			stats.NotProbes++
		default:
			stats.Probes++
			observe(f.packet)
		}
	})
	return stats, errors.Join(err, frames.unsupported)
}

// decodedFrame is one decoded record.
type decodedFrame struct {
	link   linkHeader
	packet detector.Probe // whatever its TCP flags
	drop   dropReason     // why there is no packet
}

// frameReader decodes the records of a capture.
type frameReader struct {
	file    *captureFile
	decoder *decoder
	rec     record

	unsupported error // names the first link type that is not supported
}

func newFrameReader(r io.Reader) (*frameReader, error) {
	file, err := openCapture(r)
	if err != nil {
		return nil, err
	}
	return &frameReader{file: file, decoder: newDecoder()}, nil
}

// each calls fn with every record until the end of the capture, a damaged
// record or the end of ctx; only the first is no error. What fn gets is valid
// until it returns.
func (r *frameReader) each(ctx context.Context, fn func(*decodedFrame)) error {
	var f decodedFrame
	for ctx.Err() == nil {
		var err error
		f, err = r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(&f)
	}
	return ctx.Err()
}

// next decodes the next record; its errors are those of [captureFile.next].
func (r *frameReader) next() (decodedFrame, error) {
	if err := r.file.next(&r.rec); err != nil {
		return decodedFrame{}, err
	}
	rec := &r.rec
	if !rec.link.supported() {
		if r.unsupported == nil {
			r.unsupported = unsupportedLinkType(rec.link)
		}
		return decodedFrame{drop: dropNotIP}, nil
	}
	link, ok := rec.link.parse(rec.frame)
	if !ok {
		return decodedFrame{drop: dropTruncated}, nil
	}
	p, drop := r.decoder.decode(&packet{
		at:        rec.at,
		etherType: link.etherType,
		data:      rec.frame[link.size:],
		length:    rec.length - link.size,
		iface:     rec.iface,
		// The checksums of what a host sends are left to its network card, and
		// a virtual network delivers them unfinished.
		checksum: checksumLenient,
	})
	return decodedFrame{link: link, packet: p, drop: drop}, nil
}
