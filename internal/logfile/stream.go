// Package logfile writes records to files and streams that may fill up, break
// or be rotated away under the writer, so that no record is lost, torn or
// doubled as long as the process lives.
//
// A record is some bytes that end in a newline. Records come in batches, and a
// batch is one write.
package logfile

import (
	"bytes"
	"io"
	"os"
)

// A Stream appends records to a writer. It is not safe for concurrent use.
type Stream struct {
	w io.Writer

	// rest is what a write cut short has left of its batch, from the start of
	// the record that was cut. Its first done bytes are out already. It is
	// written before anything else, so it is never longer than one batch.
	rest []byte
	done int
}

// NewStream returns a Stream to w, which stays the caller's to close. If w is a
// pipe, a socket or a terminal, a batch that its reader does not take within a
// second is an error.
func NewStream(w io.Writer) *Stream {
	if file, ok := w.(*os.File); ok {
		if info, err := file.Stat(); err == nil && !info.Mode().IsRegular() {
			w = impatientFile{file}
		}
	}
	return &Stream{w: w}
}

// Append appends a batch of records. After nil the Stream is responsible for
// all of them, even if some have to wait until the next call. After an error it
// has taken none: the caller keeps the batch and comes again.
func (s *Stream) Append(records []byte) error {
	if err := s.flush(); err != nil {
		return err
	}
	n, err := s.w.Write(records)
	if err == nil {
		return nil
	}
	if n == 0 {
		return err
	}
	s.keep(records, n)
	return nil
}

// Close writes what is left. It does not close the writer.
func (s *Stream) Close() error { return s.flush() }

// redirect has everything from now on go to w, which holds no part of a record.
func (s *Stream) redirect(w io.Writer) { s.w, s.done = w, 0 }

func (s *Stream) waits() bool { return len(s.rest) > 0 }

func (s *Stream) flush() error {
	if !s.waits() {
		return nil
	}
	n, err := s.w.Write(s.rest[s.done:])
	if err != nil {
		s.keep(s.rest, s.done+n)
		return err
	}
	s.rest, s.done = s.rest[:0], 0
	return nil
}

// keep remembers what is left of batch after its first n bytes.
func (s *Stream) keep(batch []byte, n int) {
	cut := bytes.LastIndexByte(batch[:n], '\n') + 1
	s.rest = append(s.rest[:0], batch[cut:]...)
	s.done = n - cut
}
