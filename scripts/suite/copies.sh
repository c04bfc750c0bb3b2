# Tests of programs that copy trees: into the current directory and back to $1.

# tree: a tree with all kinds of files, in $from
tree() {
	from=$(mktemp -d "$1/copies.XXXXXX")
	mkdir -p "$from/t/sub/deep"
	i=0
	while [ $i -lt 200 ]; do
		head -c $((i * i * 7)) /dev/urandom >"$from/t/sub/f$i"
		i=$((i + 1))
	done
	truncate -s 3M "$from/t/sparse"
	echo end >>"$from/t/sparse"
	ln "$from/t/sub/f9" "$from/t/hard"
	ln -s sub/f9 "$from/t/soft"
	ln -s nowhere "$from/t/dangling"
	mkfifo "$from/t/fifo"
	echo x >"$from/t/sub/deep/name with spaces, ä and \\"
	chmod 4751 "$from/t/sub/f1"
	chmod 0 "$from/t/sub/f2"
	chown 1:2 "$from/t/sub/f3"
	setfattr -n user.note -v "a value" "$from/t/sub/f5"
	# rsync takes times in the same second for the same.
	find "$from/t" -depth -exec touch -hd '2001-02-03 04:05:06.789' {} +
}

# sums DIR: everything that a copy has to keep
sums() {
	(
		cd "$1"
		find . -printf '%p %y %m %U:%G %n %l %T@' \( -type d -printf '\n' -o -printf ' %s\n' \) | sort
		find . -type f -print0 | sort -z | xargs -0 sha256sum
		find . \( -type f -o -type d \) -print0 | sort -z | xargs -0 getfattr -hd
	)
}

# same: here is what is in $from, and back again
same() {
	sums "$from/t" >"$from/want"
	sums t >"$from/have"
	diff "$from/want" "$from/have"
	rm -rf "$from/t"
	"$@"
	sums "$from/t" >"$from/have"
	diff "$from/want" "$from/have"
	rm -rf "$from"
}

t_rsync() {
	tree "$1"
	rsync -aHAX --checksum "$from/t" .
	[ -z "$(rsync -aHAXi --checksum "$from/t" .)" ]
	same rsync -aHAX --checksum t "$from/"
}

t_rsync_inplace() {
	tree "$1"
	rsync -aHX --inplace --no-whole-file "$from/t" .
	head -c 100 /dev/urandom >>"$from/t/sub/f100"
	rsync -aHX --inplace --no-whole-file --checksum "$from/t" .
	same rsync -aHX t "$from/"
}

t_tar() {
	tree "$1"
	tar -C "$from" --xattrs -S -cf - t | tar --xattrs --xattrs-include='*' -xpf -
	back() { tar --xattrs -S -cf - t | tar -C "$from" --xattrs --xattrs-include='*' -xpf -; }
	same back
}

t_cp() {
	tree "$1"
	cp -a "$from/t" t
	same cp -a t "$from/t"
}
